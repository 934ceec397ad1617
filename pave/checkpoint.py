"""Checkpoints in and out: our folder, and the official PAVE folders under the official names."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from pave import config as configs
from pave import lora, plug
from pave.config import BaseConfig, Config, LoraConfig, PatchConfig
from pave.io import store
from pave.io.atomic import atomic_folder
from pave.model import Pave
from pave.nn.patch import ConvShape, Patch
from pave.types import UserError

PATCH_FILE, ADAPTER_FILE, CONFIG_FILE = "patch.safetensors", "adapter_model.safetensors", "pave.yaml"
OFFICIAL_PATCH_FILES = ("non_lora_trainables.bin", "mm_projector.bin")


def load_base(config: BaseConfig, weights: bool = True, trim_vocabulary: bool = True) -> Any:
    """The base that a config names; frozen."""
    base = plug.load("bases", config.name).load(
        configs.resolve(config.path),
        newline=config.newline,
        pool=config.pool,
        dtype=getattr(torch, config.dtype),
        attention=config.attention,
        vision_heads=config.vision_heads,
        trim_vocabulary=trim_vocabulary,
        weights=weights,
    )
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
    """A fresh model: frozen base, LoRA and patches that change nothing yet. Without weights: shapes only."""
    base = load_base(config.base, weights)
    with torch.device("cpu" if weights else "meta"):
        lora.inject(base.hf, base.lora_targets, config.lora)
        patches = {name: make_patch(side, base.query_dim, base.embed_dim) for name, side in config.sides.items()}
        return Pave(base, patches)


def write(model: Pave, config: Config, folder: Path) -> None:
    """Our files into an existing folder; `save` is the safe way to a finished one."""
    (folder / CONFIG_FILE).write_text(configs.dump(config))
    save_file({k: v.detach().contiguous().cpu() for k, v in model.patches.state_dict().items()}, folder / PATCH_FILE)
    if config.lora.r:
        lora.write_settings(model.base.lora_targets, config.lora, config.base.path, folder)
        save_file({k: v.contiguous().cpu() for k, v in lora.state(model.base.hf).items()}, folder / ADAPTER_FILE)


def save(model: Pave, config: Config, folder: Path) -> None:
    """Write a patch folder whole or not at all."""
    with atomic_folder(folder) as temporary:
        write(model, config, temporary)


def read_config(folder: Path, overrides: Sequence[str] = ()) -> Config:
    """The config of a folder of ours, with `key=value` overrides."""
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(f"{folder}: no {CONFIG_FILE} in it; expected a folder that `pave train` wrote")
    return configs.load(folder / CONFIG_FILE, overrides)


def load(folder: Path, overrides: Sequence[str] = ()) -> tuple[Pave, Config]:
    """A trained model from a folder of ours. Strict."""
    config = read_config(folder, overrides)
    model = create(config)
    read(model, config, folder)
    return model.eval(), config


def read(model: Pave, config: Config, folder: Path) -> None:
    """Fill a model from a folder's tensors. Raises UserError naming a missing, extra or misshapen tensor."""
    file = folder / PATCH_FILE
    tensors = store.read_safetensors(file).state
    lora.check_same(_shapes(model.patches.state_dict()), _shapes(tensors), file)
    model.patches.load_state_dict(tensors)
    if config.lora.r:
        lora.load_state(model.base.hf, store.read_safetensors(folder / ADAPTER_FILE).state, folder / ADAPTER_FILE)


# Ours -> official. The only place, beside the glossary, where the old names stand.
_OFFICIAL_PATCH_NAMES = (
    (r"^side_in\.(\d+)\.(\d+)\.time", r"input_mapping.\1.res\2.branch2.a"),
    (r"^side_in\.(\d+)\.(\d+)\.space", r"input_mapping.\1.res\2.branch2.b"),
    (r"^side_in\.(\d+)\.(\d+)\.out", r"input_mapping.\1.res\2.branch2.c"),
    (r"^side_in\.(\d+)\.(\d+)\.skip", r"input_mapping.\1.res\2.branch1"),
    (r"^side_in\.", "input_mapping."),
    (r"^query_in\.", "query_input_mapping."),
    (r"^queries$", "learnable_query"),
    (r"^layers\.(\d+)\.([qkv])\.", r"cross_attn_layers.\1.attn.\2_linear."),
    (r"^layers\.(\d+)\.norm\.", r"cross_attn_layers.\1.ffn.0."),
    (r"^layers\.(\d+)\.up\.", r"cross_attn_layers.\1.ffn.1."),
    (r"^layers\.(\d+)\.down\.", r"cross_attn_layers.\1.ffn.3."),
    (r"^out\.", "output_mapping."),
    (r"^out_norm\.", "output_norm."),
)


def official_patch_name(name: str) -> str:
    """The released name of a patch parameter, without its prefix."""
    for ours, official in _OFFICIAL_PATCH_NAMES:
        renamed, found = re.subn(ours, official, name)
        if found:
            return renamed
    raise KeyError(f"patch parameter '{name}' has no official name")


def rename_patch(patch: Patch, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An official patch state under our names; names the patch does not know stay as they are."""
    ours = {official_patch_name(name): name for name in patch.state_dict()}
    # Quirk: start_end_tokens may be saved and is never read by the patch.
    return {ours.get(name, name): x for name, x in state.items() if name != "start_end_tokens"}


def is_official(folder: Path) -> bool:
    """Whether a folder holds a checkpoint in the released layout."""
    return any((folder / name).is_file() for name in OFFICIAL_PATCH_FILES)


def load_official(folder: Path, given: Config) -> tuple[Pave, Config]:
    """A released single-channel checkpoint on the base of `given`; its shapes come from its tensors, strictly.

    The side's name (audio if `given` has none), its files and 3D rope do not stand in the folder; `given` has them.
    """
    settings = json.loads((folder / "config.json").read_text())
    wanted = ("temporal_aggregator_type", "feat_combine_method", "mm_newline_position")
    kind, combine, newline = (settings.get(key) for key in wanted)
    if kind not in ("pmv5", "ssmv5") or combine != "add" or newline is None:
        raise UserError(
            f"{folder}/config.json: {', '.join(wanted)} are {kind}, {combine}, {newline}; expected pmv5, add, grid"
        )
    file = next(folder / name for name in OFFICIAL_PATCH_FILES if (folder / name).is_file())
    state = _official_patch_state(file)
    adapter, adapter_config = folder / ADAPTER_FILE, LoraConfig(r=0)
    if adapter.is_file():
        peft = json.loads((folder / "adapter_config.json").read_text())
        adapter_config = LoraConfig(peft["r"], peft["lora_alpha"], peft["lora_dropout"])
    side = next(iter(given.sides), "audio")
    config = dataclasses.replace(
        given,
        base=dataclasses.replace(given.base, newline=newline),
        sides={side: infer_patch(state, given.sides.get(side, PatchConfig()), file)},
        lora=adapter_config,
    )
    model = create(config)
    patch = model.patches[side]
    assert isinstance(patch, Patch)
    renamed = rename_patch(patch, state)
    lora.check_same(_shapes(patch.state_dict()), _shapes(renamed), file)
    patch.load_state_dict(renamed)
    if config.lora.r:
        layers = ("base_model.model.model.layers.", "base_model.model.model.language_model.layers.")
        ours = {name.replace(*layers): x for name, x in store.read_safetensors(adapter).state.items()}
        lora.load_state(model.base.hf, ours, adapter)
    return model.eval(), config


def infer_patch(state: Mapping[str, Tensor], given: PatchConfig, file: Path) -> PatchConfig:
    """The geometry of an official patch state (linear input map); heads are 4, or 128 channels each with rope.

    Raises UserError if a tensor that tells it is missing.
    """
    for name in ("input_mapping.weight", "cross_attn_layers.0.attn.q_linear.weight"):
        if name not in state:
            raise UserError(f"{file}: tensor '{name}' is missing; expected a released patch with a linear input map")
    depth = len({name.split(".")[1] for name in state if name.startswith("cross_attn_layers.")})
    side_width, dim = state["input_mapping.weight"].shape
    width = state["cross_attn_layers.0.attn.q_linear.weight"].shape[0]
    learnable = state.get("learnable_query")
    return dataclasses.replace(
        given,
        dim=dim,
        width=width,
        side_width=side_width,
        heads=width // 128 if given.rope else 4,
        depth=depth,
        queries=[] if learnable is None else list(learnable.shape[:2]),
    )


def _official_patch_state(file: Path) -> dict[str, Tensor]:
    """Patch tensors without their prefix, float32. Raises UserError for anything else in the file."""
    state = store.read_torch(file)
    pattern = re.compile(r"(?:base_model\.model\.)?model\.temporal_aggregator\.(.+)")
    found = {name: pattern.fullmatch(name) for name in state}
    strange = [name for name, match in found.items() if match is None]
    if strange:
        raise UserError(f"{file}: tensor '{strange[0]}' is not part of a single-channel patch ({len(strange)} such)")
    return {match[1]: state[name].float() for name, match in found.items() if match is not None}


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(x.shape) for name, x in state.items()}
