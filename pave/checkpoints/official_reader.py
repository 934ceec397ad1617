"""What a released PAVE folder says: the config it amounts to and its tensors, without a base.

What it does not say is given: the names of the sides, in the order of their patches; 3D rope and the number of heads,
on which no tensor's shape and no field of config.json depends; the strides of a convolutional input map.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from pave.config import BaseConfig, Config, LoraConfig, PatchConfig
from pave.media import feature_files
from pave.models.bases import _llava_onevision_layouts
from pave.types import UserError
from pave.utils.json_files import read_json

PATCH_FILES = WITH_LORA, WITHOUT_LORA = "non_lora_trainables.bin", "mm_projector.bin"
"""Where the patches are."""
ADAPTER_FILE, ADAPTER_CONFIG, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json", "config.json"
PREFIXES = ("temporal_aggregator", "temporal_aggregator2")
"""Of the first patch and of the second."""
EMBEDDING, HEAD = "base_model.model.model.embed_tokens.weight", "base_model.model.lm_head.weight"
"""Names of the base's own tensors in an adapter file."""
_KINDS = ("pmv5", "ssmv5")
"""Two names of one module."""
_CHANGE_LORA = ("alpha_pattern", "layer_replication", "modules_to_save", "rank_pattern", "use_dora", "use_rslora")
"""Settings that change what an adapter computes; unset in every PAVE adapter."""

EXPECTED = "a file of an official folder; download it again"


class OfficialCheckpoint(NamedTuple):
    """What a released folder holds, in its own dtypes, and the config it amounts to."""

    config: Config
    patches: dict[str, dict[str, Tensor]]
    """Side -> the patch's tensors under official names, without prefix."""
    adapter: dict[str, Tensor]
    """LoRA under the official names; empty without."""
    vocabulary: dict[str, Tensor]
    """Copies of embedding and head that peft puts beside LoRA where the vocabulary was resized."""
    file: Path
    """The patches came from here."""


def read(folder: Path, given: Config) -> OfficialCheckpoint:
    """Everything a released folder says, without a base. Patches are called as the sides of `given`, in that order.

    One patch is `audio` if `given` names none. The base is the published one of the folder's width unless `given` has
    another. UserError: another kind of folder, something missing, sides that do not fit the patches.
    """
    settings = read_json(folder / CONFIG_FILE, EXPECTED)
    wanted = ("temporal_aggregator_type", "feat_combine_method", "mm_newline_position")
    kind, combine, newline = (settings.get(key) for key in wanted)
    if kind not in _KINDS or combine != "add" or newline not in ("grid", "frame", "one_token", "no_token"):
        raise UserError(
            f"{folder}/config.json: {', '.join(wanted)} are {kind}, {combine}, {newline}; expected pmv5, add, grid"
        )
    file = next((folder / name for name in PATCH_FILES if (folder / name).is_file()), folder / WITH_LORA)
    states = _read_patches(file)
    names = list(given.sides) or ["audio"]
    if len(names) != len(states):
        raise UserError(
            f"{file}: {len(states)} patches, but the sides given are {', '.join(names)}; "
            "name each side in the order of the patches, for example sides.dense={} sides.audio={}"
        )
    patches = dict(zip(names, states))
    sides = {name: infer_patch(state, given.sides.get(name, PatchConfig()), file) for name, state in patches.items()}
    adapter_config, adapter = (LoraConfig(r=0), {}) if file.name == WITHOUT_LORA else _read_adapter(folder)
    vocabulary = {name: adapter.pop(name) for name in (EMBEDDING, HEAD) if name in adapter}
    base = _base(given.base, newline, states[0]["output_norm.bias"].shape[0], file)
    config = dataclasses.replace(given, base=base, sides=sides, lora=adapter_config)
    return OfficialCheckpoint(config, patches, adapter, vocabulary, file)


def infer_patch(state: Mapping[str, Tensor], given: PatchConfig, file: Path) -> PatchConfig:
    """The geometry of an official patch state; `given` has what no shape tells.

    Heads have 128 channels with rope, else there are `given.heads`. UserError if a tensor that tells is missing.
    """
    stem = "input_mapping.0.conv.weight"
    first = stem if stem in state else "input_mapping.weight"
    for name in (first, "cross_attn_layers.0.attn.q_linear.weight", "output_norm.bias"):
        if name not in state:
            raise UserError(f"{file}: tensor '{name}' is missing; expected a released patch")
    side_width, dim = state[first].shape[:2]
    width = state["cross_attn_layers.0.attn.q_linear.weight"].shape[0]
    if given.rope and width % 128:
        raise UserError(f"{file}: 3D rope needs heads of 128 channels, this patch is {width} wide; leave rope off")
    learnable = state.get("learnable_query")
    blocks, strides, scales = _infer_conv(state, given, file) if first == stem else ([], [], [])
    return dataclasses.replace(
        given,
        side_dim=dim,
        hidden_dim=width,
        side_hidden_dim=side_width,
        heads=width // 128 if given.rope else given.heads,
        num_layers=len({name.split(".")[1] for name in state if name.startswith("cross_attn_layers.")}),
        conv_blocks=blocks,
        conv_strides=strides,
        conv_scales=scales,
        queries=[] if learnable is None else list(learnable.shape[:2]),
    )


def _infer_conv(state: Mapping[str, Tensor], given: PatchConfig, file: Path) -> tuple[list[int], list[int], list[int]]:
    """Blocks, strides and scales of a convolutional input map's stages; entry 0 is the stem's."""
    blocks, scales, shortcut = [1], [1], False
    while (first := f"input_mapping.{len(blocks)}.res0.") + "branch2.c.weight" in state:
        stage = first.removesuffix("res0.")
        blocks.append(len({name.split(".")[2] for name in state if name.startswith(stage)}))
        after, before = state[first + "branch2.c.weight"].shape[:2]
        scales.append(after // before)
        shortcut |= f"{first}branch1.weight" in state
    # A block without shortcut has stride 1; one with may have it for its width alone.
    strides = given.conv_strides or [1] * len(blocks)
    if (shortcut and not given.conv_strides) or len(strides) != len(blocks):
        raise UserError(
            f"{file}: a convolutional input map of {len(blocks)} stages, whose strides no tensor tells; "
            f"give sides.NAME.conv_strides, one number for each, the first for the stem (unused)"
        )
    return blocks, strides, scales


def _base(given: BaseConfig, newline: Any, width: int, file: Path) -> BaseConfig:
    """The base with the folder's newline mode; the published one of its width unless another was given."""
    path = given.path
    if path == BaseConfig().path:
        published = [
            name for name, (text, _) in _llava_onevision_layouts.PUBLISHED.items() if text["hidden_size"] == width
        ]
        if not published:
            raise UserError(f"{file}: made for a base {width} wide, and no published one is; give base.path=FOLDER")
        path = published[0]
    return dataclasses.replace(given, path=path, newline=newline)


def _read_patches(file: Path) -> list[dict[str, Tensor]]:
    """One or two patches under official names, without prefix. UserError for anything else in the file."""
    pattern = re.compile(rf"(?:base_model\.)?(?:model\.)?model\.({'|'.join(PREFIXES)})\.(.+)")
    patches: dict[str, dict[str, Tensor]] = {prefix: {} for prefix in PREFIXES}
    for name, x in _tensors(file).items():
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
    file = folder / ADAPTER_CONFIG
    settings = read_json(file, EXPECTED, ("r", "lora_alpha", "lora_dropout"))
    strange = [key for key in _CHANGE_LORA if settings.get(key)]
    if strange or settings.get("bias", "none") != "none":
        raise UserError(f"{file}: {', '.join(strange) or 'bias'} is set; expected plain LoRA, as PAVE trains it")
    file, binary = folder / ADAPTER_FILE, folder / "adapter_model.bin"
    raw = _tensors(binary) if binary.is_file() and not file.is_file() else feature_files.read_safetensors(file).state
    state = {re.sub(r"\.default\.weight$", ".weight", name): x for name, x in raw.items()}
    config = LoraConfig(settings["r"], settings["lora_alpha"], settings["lora_dropout"])
    return config, {f"base_model.model.{name.removeprefix('base_model.model.')}": x for name, x in state.items()}


def _tensors(file: Path) -> dict[str, Tensor]:
    """A pickled table of tensors."""
    state = feature_files.read_torch(file)
    if not isinstance(state, dict) or not all(isinstance(x, Tensor) for x in state.values()):
        raise UserError(f"{file}: not a table of tensors; download it again")
    return state
