"""Read an official PAVE folder without a base: the config it amounts to, and its tensors.

The folder does not tell all of it, so the user gives a config with the rest: the names of the sides, in the order of
their patches; 3D rope and the number of heads, on which no tensor's shape and no field of config.json depends; the
strides of a convolutional input map.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from pave.config import BaseConfig, Config, LoraConfig, PatchConfig
from pave.media import feature_files
from pave.models import lora
from pave.models.base import Newline
from pave.models.bases import _llava_onevision_layouts
from pave.models.patch.rotary import HEAD_DIM
from pave.types import UserError
from pave.utils.json_files import read_json

WITH_LORA, WITHOUT_LORA = "non_lora_trainables.bin", "mm_projector.bin"
PATCH_FILES = (WITH_LORA, WITHOUT_LORA)
"""Files that may hold the patches."""
ADAPTER_FILE, ADAPTER_CONFIG, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json", "config.json"
PREFIXES = ("temporal_aggregator", "temporal_aggregator2")
"""What the names of the first patch's tensors begin with, and of the second's."""
EMBEDDING, HEAD = "base_model.model.model.embed_tokens.weight", "base_model.model.lm_head.weight"
"""Names of the base's own tensors in an adapter file."""
_PATCH_TYPES = ("pmv5", "ssmv5")
"""Two names of one module."""
_NEWLINES = ("grid", "frame", "one_token", "no_token")
_CHANGE_LORA = ("alpha_pattern", "layer_replication", "modules_to_save", "rank_pattern", "use_dora", "use_rslora")
"""Settings that change what an adapter computes; unset in every PAVE adapter."""
_EXPECTED = "a file of an official folder; download it again"


class OfficialCheckpoint(NamedTuple):
    """What an official folder holds, in its own dtypes, and the config it amounts to."""

    config: Config
    patches: dict[str, dict[str, Tensor]]
    """Side -> the patch's tensors under official names, without prefix."""
    adapter: dict[str, Tensor]
    """LoRA under the official names; empty without."""
    vocabulary: dict[str, Tensor]
    """Copies of embedding and head that peft puts beside LoRA where the vocabulary was resized."""
    file: Path
    """The file that holds the patches."""


def read_official(folder: Path, config: Config) -> OfficialCheckpoint:
    """Read an official folder; `config` has what it does not tell, and its sides name the patches, in that order.

    One patch is `audio` if `config` names none. The base is the published one of the folder's width unless `config`
    has another. Raises UserError for another kind of folder, a missing tensor, sides that do not fit the patches.
    """
    settings = read_json(folder / CONFIG_FILE, _EXPECTED)
    patch_type, combine = settings.get("temporal_aggregator_type"), settings.get("feat_combine_method")
    newline = settings.get("mm_newline_position")
    if patch_type not in _PATCH_TYPES or combine != "add" or newline not in _NEWLINES:
        raise UserError(
            f"{folder}/config.json: temporal_aggregator_type, feat_combine_method, mm_newline_position are "
            f"{patch_type}, {combine}, {newline}; expected pmv5, add, grid"
        )

    file = next((folder / name for name in PATCH_FILES if (folder / name).is_file()), folder / WITH_LORA)
    states = _read_patches(file)
    names = list(config.sides) or ["audio"]
    if len(names) != len(states):
        raise UserError(
            f"{file}: {len(states)} patches, but the sides given are {', '.join(names)}; "
            "name each side in the order of the patches, for example sides.dense={} sides.audio={}"
        )
    patches = dict(zip(names, states))
    sides = {name: infer_patch(state, config.sides.get(name, PatchConfig()), file) for name, state in patches.items()}

    lora_config, adapter = (LoraConfig(r=0), {}) if file.name == WITHOUT_LORA else _read_adapter(folder)
    vocabulary = {name: adapter.pop(name) for name in (EMBEDDING, HEAD) if name in adapter}
    base = _infer_base(config.base, newline, states[0]["output_norm.bias"].shape[0], file)
    config = dataclasses.replace(config, base=base, sides=sides, lora=lora_config)
    return OfficialCheckpoint(config, patches, adapter, vocabulary, file)


def infer_patch(state: Mapping[str, Tensor], config: PatchConfig, file: Path) -> PatchConfig:
    """Infer the geometry of a patch from its official tensors; `config` has what no shape tells.

    Heads have 128 channels with rope, else there are `config.heads`. Raises UserError where a tensor is missing.
    """
    stem = "input_mapping.0.conv.weight"
    first = stem if stem in state else "input_mapping.weight"
    for name in (first, "cross_attn_layers.0.attn.q_linear.weight", "output_norm.bias"):
        if name not in state:
            raise UserError(f"{file}: tensor '{name}' is missing; expected an official patch")

    side_hidden_dim, side_dim = state[first].shape[:2]
    hidden_dim = state["cross_attn_layers.0.attn.q_linear.weight"].shape[0]
    if config.rope and hidden_dim % HEAD_DIM:
        raise UserError(f"{file}: 3D rope needs heads of 128 channels, this patch is {hidden_dim} wide; leave rope off")
    learnable_query = state.get("learnable_query")
    blocks, strides, scales = _infer_conv(state, config, file) if first == stem else ([], [], [])
    return dataclasses.replace(
        config,
        side_dim=side_dim,
        hidden_dim=hidden_dim,
        side_hidden_dim=side_hidden_dim,
        heads=hidden_dim // HEAD_DIM if config.rope else config.heads,
        num_layers=len({name.split(".")[1] for name in state if name.startswith("cross_attn_layers.")}),
        conv_blocks=blocks,
        conv_strides=strides,
        conv_scales=scales,
        queries=[] if learnable_query is None else list(learnable_query.shape[:2]),
    )


def _infer_conv(state: Mapping[str, Tensor], config: PatchConfig, file: Path) -> tuple[list[int], list[int], list[int]]:
    """Blocks, strides and scales of a convolutional input map's stages; entry 0 is the stem's."""
    blocks, scales, has_shortcut = [1], [1], False
    stage = "input_mapping.1."
    while f"{stage}res0.branch2.c.weight" in state:
        blocks.append(len({name.split(".")[2] for name in state if name.startswith(stage)}))
        width_out, width_in = state[f"{stage}res0.branch2.c.weight"].shape[:2]
        scales.append(width_out // width_in)
        has_shortcut |= f"{stage}res0.branch1.weight" in state
        stage = f"input_mapping.{len(blocks)}."

    # A block without shortcut has stride 1; one with may have it for its width alone.
    strides = config.conv_strides or [1] * len(blocks)
    if (has_shortcut and not config.conv_strides) or len(strides) != len(blocks):
        raise UserError(
            f"{file}: a convolutional input map of {len(blocks)} stages, whose strides no tensor tells; "
            f"give sides.NAME.conv_strides, one number for each, the first for the stem (unused)"
        )
    return blocks, strides, scales


def _infer_base(config: BaseConfig, newline: Newline, width: int, file: Path) -> BaseConfig:
    """The base with the folder's newline mode; the published one of its width unless another was given."""
    path = config.path
    if path == BaseConfig().path:
        published = _llava_onevision_layouts.PUBLISHED.items()
        paths = [name for name, (text, _) in published if text["hidden_size"] == width]
        if not paths:
            raise UserError(f"{file}: made for a base {width} wide, and no published one is; give base.path=FOLDER")
        path = paths[0]
    return dataclasses.replace(config, path=path, newline=newline)


def _read_patches(file: Path) -> list[dict[str, Tensor]]:
    """One or two patches under official names, without prefix. Raises UserError for any other tensor in the file."""
    pattern = re.compile(rf"(?:base_model\.)?(?:model\.)?model\.({'|'.join(PREFIXES)})\.(.+)")
    patches: dict[str, dict[str, Tensor]] = {prefix: {} for prefix in PREFIXES}
    for name, x in _read_tensors(file).items():
        match = pattern.fullmatch(name)
        if match is None:
            raise UserError(f"{file}: tensor '{name}' is not part of a patch; expected model.{PREFIXES[0]}.*")
        patches[match[1]][match[2]] = x
    first, second = patches.values()
    if not first:
        raise UserError(f"{file}: no tensor of a patch in it; expected model.{PREFIXES[0]}.*")
    return [first, second] if second else [first]


def _read_adapter(folder: Path) -> tuple[LoraConfig, dict[str, Tensor]]:
    """LoRA's settings and its tensors under the names peft gives them today."""
    settings_file = folder / ADAPTER_CONFIG
    settings = read_json(settings_file, _EXPECTED, ("r", "lora_alpha", "lora_dropout"))
    unsupported = [key for key in _CHANGE_LORA if settings.get(key)]
    if settings.get("bias", "none") != "none":
        unsupported.append("bias")
    if unsupported:
        raise UserError(f"{settings_file}: {', '.join(unsupported)} is set; expected plain LoRA, as PAVE trains it")
    config = LoraConfig(settings["r"], settings["lora_alpha"], settings["lora_dropout"])

    file, pickle_file = folder / ADAPTER_FILE, folder / "adapter_model.bin"
    if pickle_file.is_file() and not file.is_file():
        state = _read_tensors(pickle_file)
    else:
        state = feature_files.read_safetensors(file).state
    adapter: dict[str, Tensor] = {}
    for name, x in state.items():
        name = re.sub(r"\.default\.weight$", ".weight", name)
        adapter[lora.PREFIX + name.removeprefix(lora.PREFIX)] = x
    return config, adapter


def _read_tensors(file: Path) -> dict[str, Tensor]:
    """A pickled dictionary of tensors. Raises UserError for anything else."""
    state = feature_files.read_torch(file)
    if not isinstance(state, dict) or not all(isinstance(x, Tensor) for x in state.values()):
        raise UserError(f"{file}: not a dictionary of tensors; download it again")
    return state
