"""Build models: load a base, make patches, start fresh or from a trained folder of ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pave import config as configs
from pave.checkpoints.patch_folder import ADAPTER_FILE, PATCH_FILE, check_same_base, read_config
from pave.config import BaseConfig, Config, LoraConfig, PatchConfig
from pave.media import feature_files
from pave.models import lora, state_dicts, trainable
from pave.models.base import Base, LoadSettings, get_base
from pave.models.patch.patch import ConvShape, Patch
from pave.models.patched_model import PatchedModel, check_weight
from pave.models.state_dicts import shapes
from pave.types import UserError

GEOMETRY = (
    "side_dim",
    "hidden_dim",
    "side_hidden_dim",
    "heads",
    "num_layers",
    "rope",
    "conv_blocks",
    "conv_strides",
    "conv_scales",
    "queries",
    "value_projection",
    "neighborhood",
    "window_reach",
)
"""Settings that two patches with interchangeable tensors have in common."""


def load_base(config: BaseConfig, weights: bool = True) -> Base:
    """Load the base that a config names, frozen; see `Base.load`."""
    settings = LoadSettings(
        dtype=getattr(torch, config.dtype),
        attention=config.attention,
        quantize=config.quantize,
        newline=config.newline,
        pool=config.pool,
        vision_heads=config.vision_heads,
    )
    try:
        base = get_base(config.name).load(configs.resolve(config.path), settings, weights)
    except ImportError as error:
        # Only a kernel that is not the default may need a package that is not installed.
        if config.attention == "sdpa":
            raise
        raise UserError(f"base.attention={config.attention}: {error}; install it, or set it to sdpa") from error
    return base.requires_grad_(False)


def make_patch(config: PatchConfig, query_dim: int, embed_dim: int) -> Patch:
    """A fresh patch of a config's geometry, between a base's query and LLM widths."""
    if config.conv_strides and not config.conv_blocks:
        raise UserError(
            f"conv_strides={config.conv_strides} without conv_blocks and conv_scales: set all three, or none"
        )
    conv = None
    if config.conv_blocks:
        conv = ConvShape(tuple(config.conv_blocks), tuple(config.conv_strides), tuple(config.conv_scales))

    return Patch(
        config.side_dim,
        query_dim,
        embed_dim,
        hidden_dim=config.hidden_dim,
        side_hidden_dim=config.side_hidden_dim,
        heads=config.heads,
        num_layers=config.num_layers,
        rope=config.rope,
        conv=conv,
        queries=(config.queries[0], config.queries[1]) if config.queries else None,
        value_projection=config.value_projection,
        neighborhood=config.neighborhood,
        window_reach=config.window_reach,
        kernel=config.kernel,
    )


def make_patches(sides: Mapping[str, PatchConfig], base: Base) -> dict[str, Patch]:
    """A fresh patch for each side-channel, between a base's widths."""
    return {name: make_patch(side, base.query_dim, base.embed_dim) for name, side in sides.items()}


def create(config: Config, weights: bool = True) -> PatchedModel:
    """A fresh model: frozen base, LoRA and patches at their start or that of their `init_from`; trainable as set.

    Without weights: shapes only, and no `init_from`. Raises UserError where an `init_from` folder does not fit.
    """
    base = load_base(config.base, weights)
    with torch.device("cpu" if weights else "meta"):
        lora.inject(base.hf, base.lora_targets, config.lora)
        model = PatchedModel(base, make_patches(config.sides, base))

    if weights:
        for name, side in config.sides.items():
            if side.init_from:
                init_patch_from(model.patches[name], name, config, Path(configs.resolve(side.init_from)))
        if config.lora.init_from:
            init_lora_from(model, config, Path(configs.resolve(config.lora.init_from)))

    trainable.make_trainable(model, config)
    apply_patch_settings(model, config.sides)
    return model


def apply_patch_settings(model: PatchedModel, sides: Mapping[str, PatchConfig]) -> None:
    """Freeze the patches that do not train, and weight them as configured."""
    for name, side in sides.items():
        if not side.trainable:
            model.patches[name].requires_grad_(False)
    model.set_patches({**model.patch_weights, **{name: side.weight for name, side in sides.items()}})


def init_patch_from(patch: nn.Module, name: str, config: Config, folder: Path) -> None:
    """Fill a fresh patch from a trained folder. Raises UserError for another base, geometry or shape."""
    # Of what this folder names nothing is imported: numbers are compared, and the plugins are those of `config`.
    trained, file = read_config(folder, trust_plugins=True), folder / PATCH_FILE
    check_same_base(trained, config, folder)
    if name not in trained.sides and len(trained.sides) != 1:
        raise UserError(
            f"{folder}: has the patches {sorted(trained.sides)}, sides.{name}.init_from needs '{name}' or a single one"
        )
    source = name if name in trained.sides else next(iter(trained.sides))
    for field in GEOMETRY:
        actual, expected = vars(trained.sides[source])[field], vars(config.sides[name])[field]
        if actual != expected:
            raise UserError(
                f"{folder}: patch '{source}' has {field}={actual}, sides.{name} has {expected}; set it alike"
            )

    prefix = f"{source}."
    state = feature_files.read_safetensors(file).state
    tensors = {key.removeprefix(prefix): x for key, x in state.items() if key.startswith(prefix)}
    state_dicts.check_same(shapes(patch.state_dict()), shapes(tensors), file)
    patch.load_state_dict(tensors)


def init_lora_from(model: PatchedModel, config: Config, folder: Path) -> None:
    """Fill a fresh LoRA from a trained folder. Raises UserError for another base, rank or alpha."""
    trained = read_config(folder, trust_plugins=True)  # as for a patch, nothing is imported
    check_same_base(trained, config, folder)
    if not trained.lora.r:
        raise UserError(f"{folder}: has no LoRA to start from; leave lora.init_from empty")
    for field in ("r", "alpha"):
        actual, expected = vars(trained.lora)[field], vars(config.lora)[field]
        if actual != expected:
            raise UserError(f"{folder}: its LoRA has {field}={actual}, lora.{field} is {expected}; set it alike")
    lora.load_state(model.base.hf, feature_files.read_safetensors(folder / ADAPTER_FILE).state, folder / ADAPTER_FILE)


def load(folder: Path, overrides: Sequence[str] = (), trust_plugins: bool = False) -> tuple[PatchedModel, Config]:
    """Load a trained model from a folder of ours. Strict; see `read_config` for plugins."""
    config = read_config(folder, overrides, trust_plugins)
    model = PatchedModel(load_base(config.base), {})
    if trainable.is_modified(config.base):
        trainable.load_modified(model, folder / trainable.BASE_FILE)
    attach_patches(model, lora.DEFAULT, config.sides, read_checked(model, config, folder))
    return model.eval(), config


def load_into(model: PatchedModel, config: Config, folder: Path) -> None:
    """Fill a model in place from a folder. Raises UserError naming a missing, extra or misshapen tensor."""
    weights = read_checked(model, config, folder)
    model.patches.load_state_dict(weights.patches.state_dict())
    if weights.adapter:
        lora.load_state(model.base.hf, weights.adapter, folder / ADAPTER_FILE)
    if trainable.is_modified(config.base):
        trainable.load_modified(model, folder / trainable.BASE_FILE)


class PatchWeights(NamedTuple):
    """The patches and the LoRA of a folder, checked against a base."""

    patches: nn.ModuleDict
    adapter: dict[str, Tensor]
    """Tensors of the LoRA; empty where the folder has none."""
    lora_config: LoraConfig
    folder: Path


def read_checked(model: PatchedModel, config: Config, folder: Path) -> PatchWeights:
    """Read patches and LoRA of a folder for a model's base. Strict, and the model stays as it is."""
    base, file = model.base, folder / PATCH_FILE
    for name, side in config.sides.items():
        check_weight(name, side.weight)

    with torch.device("meta"):
        patches = nn.ModuleDict(make_patches(config.sides, base))
    device = next(base.parameters()).device
    state = feature_files.read_safetensors(file).state
    tensors = {key: x.to(device, torch.float32, copy=True) for key, x in state.items()}
    state_dicts.check_same(shapes(patches.state_dict()), shapes(tensors), file)
    patches.load_state_dict(tensors, assign=True)

    adapter: dict[str, Tensor] = {}
    if config.lora.r:
        adapter = feature_files.read_safetensors(folder / ADAPTER_FILE).state
        lora.check_fits(base.hf, base.lora_targets, config.lora.r, adapter, folder / ADAPTER_FILE)
    return PatchWeights(patches, adapter, config.lora, folder)


def attach_patches(model: PatchedModel, name: str, sides: Mapping[str, PatchConfig], weights: PatchWeights) -> None:
    """Put patches on a model, in the order and under the names of `sides`, and their LoRA under `name`."""
    model.patches.update(dict(zip(sides, weights.patches.values())))
    if weights.adapter:
        hf = model.base.hf
        lora.inject(hf, model.base.lora_targets, weights.lora_config, name, weights=False)
        lora.load_state(hf, weights.adapter, weights.folder / ADAPTER_FILE, name)
        model.lora_patches[name] = list(sides)
    model.train(model.training)
    apply_patch_settings(model, sides)
