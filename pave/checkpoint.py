"""Checkpoints in and out: our folder. The released layout is in official.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pave import config as configs
from pave import lora, plug, tune
from pave.bases._read import Settings
from pave.config import BaseConfig, Config, LoraConfig, PatchConfig
from pave.io import store
from pave.io.atomic import atomic_folder
from pave.model import Pave, check_weight
from pave.nn.patch import ConvShape, Patch
from pave.types import UserError

PATCH_FILE, ADAPTER_FILE, CONFIG_FILE = "patch.safetensors", "adapter_model.safetensors", "pave.yaml"
SAME_BASE = ("name", "path", "newline", "pool")
"""What two configs on one base have in common."""
GEOMETRY = (
    *("dim", "width", "side_width", "heads", "depth", "rope", "conv_blocks", "conv_strides", "conv_scales"),
    *("queries", "values", "neighborhood", "reach"),
)
"""What two patches with interchangeable tensors have in common."""


def load_base(config: BaseConfig, weights: bool = True) -> Any:
    """The base that a config names; frozen."""
    settings = {name: getattr(config, name) for name in Settings._fields}
    how = Settings(**{**settings, "dtype": getattr(torch, config.dtype)})
    try:
        base = plug.load("bases", config.name).load(configs.resolve(config.path), how, weights)
    except ImportError as error:
        if config.attention == "sdpa":
            raise
        raise UserError(f"base.attention={config.attention}: {error}; install it, or set it to sdpa") from error
    lora.freeze(base)
    return base


def make_patch(config: PatchConfig, query_dim: int, embed_dim: int) -> Patch:
    """A fresh patch of a config's geometry, between a base's query and LLM widths."""
    conv = None
    if config.conv_blocks:
        conv = ConvShape(tuple(config.conv_blocks), tuple(config.conv_strides), tuple(config.conv_scales))
    return Patch(
        config.dim,
        query_dim,
        embed_dim,
        width=config.width,
        side_width=config.side_width,
        heads=config.heads,
        depth=config.depth,
        rope=config.rope,
        conv=conv,
        queries=(config.queries[0], config.queries[1]) if config.queries else None,
        values=config.values,
        neighborhood=config.neighborhood,
        reach=config.reach,
        kernel=config.kernel,
    )


def create(config: Config, weights: bool = True) -> Pave:
    """A fresh model: frozen base, LoRA and patches at their start or that of their `init`; what trains as configured.

    Without weights: shapes only, and no `init`. Raises UserError where an `init` folder does not fit.
    """
    base = load_base(config.base, weights)
    with torch.device("cpu" if weights else "meta"):
        lora.inject(base.hf, base.lora_targets, config.lora)
        patches = {name: make_patch(side, base.query_dim, base.embed_dim) for name, side in config.sides.items()}
        model = Pave(base, patches)
    for name, side in config.sides.items():
        if side.init and weights:
            _start_patch(model.patches[name], name, config, Path(configs.resolve(side.init)))
    if config.lora.init and weights:
        _start_lora(model, config, Path(configs.resolve(config.lora.init)))
    tune.start(model, config)
    _settle(model, config.sides)
    return model


def _settle(model: Pave, sides: Mapping[str, PatchConfig]) -> None:
    """Freeze the patches that do not train; weights as configured."""
    for name, side in sides.items():
        if not side.train:
            lora.freeze(model.patches[name])
    model.set_patches({**model.patch_weights, **{name: side.weight for name, side in sides.items()}})


def _start_patch(patch: nn.Module, name: str, config: Config, folder: Path) -> None:
    """Fill a fresh patch from a trained folder. Raises UserError for another base, geometry or shape."""
    # Of what this folder names nothing is imported: numbers are compared, and the plugins are those of `config`.
    trained, file = read_config(folder, trust_plugins=True), folder / PATCH_FILE
    check_same_base(trained, config, folder)
    if name not in trained.sides and len(trained.sides) != 1:
        raise UserError(f"{folder}: sides.{name}.init finds the patches {sorted(trained.sides)}; expected '{name}'")
    source = name if name in trained.sides else next(iter(trained.sides))
    for field in GEOMETRY:
        found, expected = getattr(trained.sides[source], field), getattr(config.sides[name], field)
        if found != expected:
            raise UserError(
                f"{folder}: patch '{source}' has {field}={found}, sides.{name} has {expected}; set it alike"
            )
    prefix = f"{source}."
    tensors = {k.removeprefix(prefix): x for k, x in store.read_safetensors(file).state.items() if k.startswith(prefix)}
    lora.check_same(shapes(patch.state_dict()), shapes(tensors), file)
    patch.load_state_dict(tensors)


def _start_lora(model: Pave, config: Config, folder: Path) -> None:
    """Fill a fresh LoRA from a trained folder. Raises UserError for another base, rank or alpha."""
    trained = read_config(folder, trust_plugins=True)  # as for a patch, nothing is imported
    check_same_base(trained, config, folder)
    if not trained.lora.r:
        raise UserError(f"{folder}: has no LoRA to start from; leave lora.init empty")
    for field in ("r", "alpha"):
        found, expected = getattr(trained.lora, field), getattr(config.lora, field)
        if found != expected:
            raise UserError(f"{folder}: its LoRA has {field}={found}, lora.{field} is {expected}; set it alike")
    lora.load_state(model.base.hf, store.read_safetensors(folder / ADAPTER_FILE).state, folder / ADAPTER_FILE)


def check_same_base(trained: Config, config: Config, folder: Path, also: Sequence[str] = ()) -> None:
    """Raises UserError unless a folder was trained on the base of `config`."""
    for field in (*SAME_BASE, *also):
        found, expected = getattr(trained.base, field), getattr(config.base, field)
        if field == "path":
            found, expected = configs.resolve(found), configs.resolve(expected)
        if found != expected:
            raise UserError(
                f"{folder / CONFIG_FILE}: base.{field} is '{found}', this model's is '{expected}'; expected the same "
                f"base (if it is the same, only elsewhere, set base.{field} there or as an override)"
            )


def write(model: Pave, config: Config, folder: Path) -> None:
    """Our files into an existing folder; `save` is the safe way to a finished one.

    Raises UserError where the model has the LoRAs of several folders.
    """
    config = as_it_is(model, config)
    (folder / CONFIG_FILE).write_text(configs.dump(config))
    save_file({k: v.detach().contiguous().cpu() for k, v in model.patches.state_dict().items()}, folder / PATCH_FILE)
    for name in model.loras:
        lora.write_settings(model.base.lora_targets, config.lora, config.base.path, folder)
        save_file({k: v.contiguous().cpu() for k, v in lora.state(model.base.hf, name).items()}, folder / ADAPTER_FILE)
    if model.tuned:
        save_file({k: v.contiguous().cpu() for k, v in tune.state(model).items()}, folder / tune.FILE)


def as_it_is(model: Pave, config: Config) -> Config:
    """The config with the weights and the LoRA that the model has now. Raises UserError where it has several LoRAs."""
    if len(model.loras) > 1:
        raise UserError(f"this model has several LoRAs ({', '.join(model.loras)}), a folder holds one; remove a patch")
    sides = {name: dataclasses.replace(side, weight=model.patch_weights[name]) for name, side in config.sides.items()}
    adapter = dataclasses.replace(config.lora, r=0)
    for name in model.loras:
        adapter = dataclasses.replace(config.lora, **lora.settings(model.base.hf, name))
    return dataclasses.replace(config, sides=sides, lora=adapter)


def save(model: Pave, config: Config, folder: Path) -> None:
    """Write a patch folder whole or not at all."""
    with atomic_folder(folder) as temporary:
        write(model, config, temporary)


def read_config(folder: Path, overrides: Sequence[str] = (), trust_plugins: bool = False) -> Config:
    """The config of a folder of ours, or a YAML file by itself, with `key=value` overrides.

    Plugins are code that runs, and the folder may be a stranger's: UserError for one that is neither pave's nor named
    in the overrides, unless they are trusted.
    """
    file = folder if folder.suffix == ".yaml" else folder / CONFIG_FILE
    if file != folder and not file.is_file():
        raise UserError(
            f"{folder}: no {CONFIG_FILE} in it; expected a folder that `pave train` wrote "
            "(`pave convert` makes one of a released folder)"
        )
    config = configs.load(file, overrides)
    if not trust_plugins:
        named = configs.plugins(configs.from_overrides(overrides)).values()
        for setting, plugin in own_plugins(config).items():
            if plugin not in named:
                raise UserError(
                    f"{folder}: names the plugin {plugin[1]!r} ({setting!r}), code from outside pave that would run; "
                    "if you trust it, add --trust-plugins (in Python trust_plugins=True)"
                )
    return config


def own_plugins(config: Config) -> dict[str, tuple[str, str]]:
    """Kind and name, by setting, of the plugins of a config that are not pave's."""
    return {setting: named for setting, named in configs.plugins(config).items() if not plug.is_shipped(*named)}


def load(folder: Path, overrides: Sequence[str] = (), trust_plugins: bool = False) -> tuple[Pave, Config]:
    """A trained model from a folder of ours. Strict; see `read_config` for plugins."""
    config = read_config(folder, overrides, trust_plugins)
    model = Pave(load_base(config.base), {})
    if tune.is_tuned(config.base):
        tune.fill(model, folder / tune.FILE)
    attach(model, lora.DEFAULT, config.sides, read_for(model, config, folder))
    return model.eval(), config


def read(model: Pave, config: Config, folder: Path) -> None:
    """Fill a model in place from a folder. Raises UserError naming a missing, extra or misshapen tensor."""
    trained = read_for(model, config, folder)
    model.patches.load_state_dict(trained.patches.state_dict())
    if trained.lora:
        lora.load_state(model.base.hf, trained.lora, folder / ADAPTER_FILE)
    if tune.is_tuned(config.base):
        tune.fill(model, folder / tune.FILE)


class Trained(NamedTuple):
    """What a folder holds, checked against a base."""

    patches: nn.ModuleDict
    lora: dict[str, Tensor]
    """Empty where the folder has none."""
    settings: LoraConfig
    folder: Path


def read_for(model: Pave, config: Config, folder: Path) -> Trained:
    """Patches and LoRA of a folder for a model's base. Strict, and the model stays as it is."""
    base, file = model.base, folder / PATCH_FILE
    for name, side in config.sides.items():
        check_weight(name, side.weight)
    with torch.device("meta"):
        patches = nn.ModuleDict(
            {name: make_patch(side, base.query_dim, base.embed_dim) for name, side in config.sides.items()}
        )
    device = next(base.parameters()).device
    tensors = {k: x.to(device, torch.float32, copy=True) for k, x in store.read_safetensors(file).state.items()}
    lora.check_same(shapes(patches.state_dict()), shapes(tensors), file)
    patches.load_state_dict(tensors, assign=True)
    adapter: dict[str, Tensor] = {}
    if config.lora.r:
        adapter = store.read_safetensors(folder / ADAPTER_FILE).state
        lora.check_fits(base.hf, base.lora_targets, config.lora.r, adapter, folder / ADAPTER_FILE)
    return Trained(patches, adapter, config.lora, folder)


def attach(model: Pave, name: str, sides: Mapping[str, PatchConfig], trained: Trained) -> None:
    """Put patches on a model, in the order and under the names of `sides`, and their LoRA under `name`."""
    model.patches.update(dict(zip(sides, trained.patches.values())))
    if trained.lora:
        hf = model.base.hf
        lora.inject(hf, model.base.lora_targets, trained.settings, name, weights=False)
        lora.load_state(hf, trained.lora, trained.folder / ADAPTER_FILE, name)
        model.loras[name] = list(sides)
    model.train(model.training)
    _settle(model, sides)


def shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a state."""
    return {name: tuple(x.shape) for name, x in state.items()}
