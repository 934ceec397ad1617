"""Official PAVE folders: onto a model, and back from one into the layout that the official code reads."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from pave.checkpoints import build, patch_folder
from pave.checkpoints.official_reader import (
    ADAPTER_CONFIG,
    ADAPTER_FILE,
    CONFIG_FILE,
    EMBEDDING,
    PATCH_FILES,
    PREFIXES,
    WITH_LORA,
    WITHOUT_LORA,
    OfficialCheckpoint,
    read,
)
from pave.config import Config
from pave.models import lora, state_dicts
from pave.models.bases import _llava_onevision_layouts
from pave.models.patch.patch import Patch
from pave.models.patched_model import PatchedModel
from pave.types import UserError
from pave.utils.atomic import atomic_folder

_THEIR_LAYERS = "base_model.model.model.layers."
_OUR_LAYERS = "base_model.model.model.language_model.layers."
"""Of LoRA keys: the transformers class has the LLM one level deeper."""

# Ours -> official. The only place, beside the glossary, where the old names stand.
_PATCH_NAMES = (
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


class RenamedTensors(NamedTuple):
    """Tensors under our names."""

    patches: dict[str, Tensor]
    """As Pave.patches names them."""
    adapter: dict[str, Tensor]
    """As a plain peft folder for the HF class names them."""


def patch_name(name: str) -> str:
    """The released name of a patch parameter, without its prefix."""
    for ours, official in _PATCH_NAMES:
        renamed, found = re.subn(ours, official, name)
        if found:
            return renamed
    raise KeyError(f"patch parameter '{name}' has no official name")


def rename_patch(patch: Patch, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An official patch state under our names; names the patch does not know stay as they are."""
    ours = {patch_name(name): name for name in patch.state_dict()}
    # Quirk: start_end_tokens may be saved and is never read by the patch.
    return {ours.get(name, name): x for name, x in state.items() if name != "start_end_tokens"}


def is_official(folder: Path) -> bool:
    """Whether a folder holds a checkpoint in the released layout."""
    return any((folder / name).is_file() for name in PATCH_FILES)


def load(folder: Path, given: Config) -> tuple[PatchedModel, Config]:
    """The model of a released folder, with its config. Strict; UserError names what is missing, extra or misshapen."""
    content = read(folder, given)
    model = build.create(content.config)
    named = rename(model, content)
    model.patches.load_state_dict(named.patches)
    if named.adapter:
        lora.load_state(model.base.hf, named.adapter, folder)
    _check_vocabulary(model, content)
    return model.eval(), content.config


def rename(model: PatchedModel, content: OfficialCheckpoint) -> RenamedTensors:
    """A folder's tensors under the names of a model of its config. UserError: the first that does not fit."""
    patches: dict[str, Tensor] = {}
    for prefix, (side, state) in zip(PREFIXES, content.patches.items()):
        patch = model.patches[side]
        assert isinstance(patch, Patch)
        ours = rename_patch(patch, state)
        wanted = {f"{prefix}.{patch_name(name)}": tuple(x.shape) for name, x in patch.state_dict().items()}
        given = {f"{prefix}.{name}": tuple(x.shape) for name, x in state.items() if name != "start_end_tokens"}
        state_dicts.check_same(wanted, given, content.file)
        patches |= {f"{side}.{name}": x for name, x in ours.items()}
    have = {name.replace(_OUR_LAYERS, _THEIR_LAYERS): tuple(x.shape) for name, x in lora.state(model.base.hf).items()}
    state_dicts.check_same(have, state_dicts.shapes(content.adapter), content.file.with_name(ADAPTER_FILE))
    return RenamedTensors(patches, {name.replace(_THEIR_LAYERS, _OUR_LAYERS): x for name, x in content.adapter.items()})


def _check_vocabulary(model: PatchedModel, content: OfficialCheckpoint) -> None:
    """Copies of embedding and head in an adapter file must be the base's: PAVE trains neither."""
    for name, x in content.vocabulary.items():
        owner: Any = model.base.hf.get_input_embeddings() if name == EMBEDDING else model.base.lm_head
        mine = owner.weight
        given = x[: len(mine)].to(mine.dtype).to(x.dtype)
        if given.shape != mine.shape or not torch.equal(given, mine.to(x.dtype)):
            file = content.file.with_name(ADAPTER_FILE)
            raise UserError(
                f"{file}: tensor '{name}' {tuple(x.shape)} is not the base's {tuple(mine.shape)}: another base?"
            )


def save(model: PatchedModel, config: Config, folder: Path) -> None:
    """Write a folder in the released layout, whole or not at all; tensors in the dtype they have in the model.

    As released, it does not say 3D rope, heads and strides: the official code takes them from its command line.
    Raises UserError for what that code cannot do.
    """
    config = patch_folder.effective_config(model, config)
    _check_known(config, folder)
    wrapped, name = ("base_model.model.", WITH_LORA) if config.lora.r else ("", WITHOUT_LORA)
    patches = {
        f"{wrapped}model.{prefix}.{patch_name(tensor)}": x.detach().cpu().contiguous()
        for prefix, side in zip(PREFIXES, config.sides)
        for tensor, x in model.patches[side].state_dict().items()
    }
    adapter = {
        tensor.replace(_OUR_LAYERS, _THEIR_LAYERS): x.detach().cpu().contiguous()
        for tensor, x in lora.state(model.base.hf, *model.lora_patches).items()
    }
    with atomic_folder(folder) as temporary:
        _write_json(_settings(model, config), temporary / CONFIG_FILE)
        torch.save(patches, temporary / name)
        if adapter:
            _write_json(_adapter_settings(config, adapter), temporary / ADAPTER_CONFIG)
            save_file(adapter, temporary / ADAPTER_FILE, {"format": "pt"})


def _check_known(config: Config, folder: Path) -> None:
    """UserError for a model that the official code has no words for."""
    sides = list(config.sides.values())
    if config.base.name != "llava_onevision":
        raise UserError(f"{folder}: the official code has no base '{config.base.name}'; only llava_onevision")
    if len(sides) not in (1, 2):
        raise UserError(f"{folder}: {len(sides)} patches, the official layout holds one or two")
    for name, side in config.sides.items():
        for field, official in (("value_projection", "shared"), ("neighborhood", "chunks"), ("weight", 1.0)):
            if (found := getattr(side, field)) != official:
                raise UserError(f"{folder}: sides.{name}.{field} is {found}; the official code knows only {official}")
    for field in build.GEOMETRY:
        if getattr(sides[0], field) != getattr(sides[-1], field):
            raise UserError(f"{folder}: patches of different {field}; the official code builds the second as the first")


def _settings(model: PatchedModel, config: Config) -> dict[str, Any]:
    """config.json, of which the official code reads the last block; it builds the model from the base's own."""
    text, vision = model.base.hf.config.text_config, model.base.hf.config.vision_config
    several = len(config.sides) > 1
    return {
        "_name_or_path": config.base.path,
        "architectures": ["LlavaQwenForCausalLM"],
        "model_type": "pave_qwen2_multi_sides" if several else "pave_qwen2",
        **{key: value for key in _llava_onevision_layouts.TEXT_KEYS if (value := getattr(text, key, None)) is not None},
        "hidden_act": text.hidden_act,
        "rope_theta": text.rope_parameters["rope_theta"],
        "mm_hidden_size": vision.hidden_size,
        "mm_patch_merge_type": "spatial_unpad",
        "mm_projector_type": "mlp2x_gelu",
        "mm_spatial_pool_mode": model.base.pool,
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_tower": "google/siglip-so400m-patch14-384",
        "tokenizer_model_max_length": config.data.max_length,
        "tokenizer_padding_side": "right",
        "feat_combine_method": "add",
        "mm_newline_position": model.base.newline,
        "mm_video_tower": "opensora",
        "temporal_aggregator_type": "pmv5",
        **({"temporal_aggregator2_type": "pmv5"} if several else {}),
        "train_addition_start_end_tokens": False,
        "tune_temporal_aggregator": not config.lora.r,
    }


def _adapter_settings(config: Config, adapter: Mapping[str, Tensor]) -> dict[str, Any]:
    """adapter_config.json with fields that every peft since 0.10 knows."""
    modules = {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in adapter}
    return {
        "base_model_name_or_path": config.base.path,
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": config.lora.alpha,
        "lora_dropout": config.lora.dropout,
        "peft_type": "LORA",
        "r": config.lora.r,
        "target_modules": sorted(modules),
        "task_type": "CAUSAL_LM",
    }


def _write_json(content: Mapping[str, Any], file: Path) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")
