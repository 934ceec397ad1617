"""Official PAVE folders: onto a model, and back from one into the layout that the official code reads."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

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
    read_official,
)
from pave.config import Config
from pave.models import lora, state_dicts
from pave.models.bases import _llava_onevision_layouts, llava_onevision
from pave.models.patch.patch import Patch
from pave.models.patched_model import PatchedModel
from pave.types import UserError
from pave.utils.atomic import atomic_folder

_OFFICIAL_LAYERS = "base_model.model.model.layers."
_OUR_LAYERS = "base_model.model.model.language_model.layers."
"""What LoRA keys begin with: the transformers class has the LLM one level deeper."""

# Ours -> official. The only place, beside the glossary, where the official names stand.
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
    """As PatchedModel.patches names them."""
    adapter: dict[str, Tensor]
    """As a plain peft folder for the HF class names them."""


def patch_name(name: str) -> str:
    """The official name of a patch parameter, without its prefix."""
    for ours, official in _PATCH_NAMES:
        if re.search(ours, name):
            return re.sub(ours, official, name)
    raise KeyError(f"patch parameter '{name}' has no official name")


def rename_patch(patch: Patch, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put an official patch state under our names; names the patch does not know stay as they are."""
    ours = {patch_name(name): name for name in patch.state_dict()}
    # Quirk: start_end_tokens may be saved and is never read by the patch.
    return {ours.get(name, name): x for name, x in state.items() if name != "start_end_tokens"}


def is_official(folder: Path) -> bool:
    """Whether a folder holds a checkpoint in the official layout."""
    return any((folder / name).is_file() for name in PATCH_FILES)


def load(folder: Path, config: Config) -> tuple[PatchedModel, Config]:
    """Load the model of an official folder, with its config; `config` has what `official_reader` cannot tell.

    Raises UserError naming what is missing, extra or misshapen.
    """
    checkpoint = read_official(folder, config)
    model = build.create(checkpoint.config)
    tensors = rename_tensors(model, checkpoint)
    model.patches.load_state_dict(tensors.patches)
    if tensors.adapter:
        lora.load_state(model.base.hf, tensors.adapter, folder)
    _check_vocabulary(model, checkpoint)
    return model.eval(), checkpoint.config


def rename_tensors(model: PatchedModel, checkpoint: OfficialCheckpoint) -> RenamedTensors:
    """Put a folder's tensors under the names of a model of its config. Raises UserError for the first that misfits."""
    patches: dict[str, Tensor] = {}
    for prefix, (side, state) in zip(PREFIXES, checkpoint.patches.items()):
        patch = model.patches[side]
        assert isinstance(patch, Patch)
        ours = rename_patch(patch, state)
        # Compared under the official names, so that a message names a tensor of the file.
        expected = {f"{prefix}.{patch_name(name)}": tuple(x.shape) for name, x in patch.state_dict().items()}
        actual = {f"{prefix}.{name}": tuple(x.shape) for name, x in state.items() if name != "start_end_tokens"}
        state_dicts.check_same(expected, actual, checkpoint.file)
        patches |= {f"{side}.{name}": x for name, x in ours.items()}

    expected = state_dicts.shapes(_official_adapter(lora.state(model.base.hf)))
    state_dicts.check_same(expected, state_dicts.shapes(checkpoint.adapter), checkpoint.file.with_name(ADAPTER_FILE))
    adapter = {name.replace(_OFFICIAL_LAYERS, _OUR_LAYERS): x for name, x in checkpoint.adapter.items()}
    return RenamedTensors(patches, adapter)


def _official_adapter(adapter: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """LoRA tensors under the official names."""
    return {name.replace(_OUR_LAYERS, _OFFICIAL_LAYERS): x for name, x in adapter.items()}


def _check_vocabulary(model: PatchedModel, checkpoint: OfficialCheckpoint) -> None:
    """Copies of embedding and head in an adapter file must be the base's: PAVE trains neither."""
    for name, x in checkpoint.vocabulary.items():
        expected = model.base.hf.get_input_embeddings().weight if name == EMBEDDING else model.base.lm_head.weight
        assert isinstance(expected, Tensor)
        # The file may be padded, and in another dtype.
        actual = x[: len(expected)].to(expected.dtype).to(x.dtype)
        if actual.shape != expected.shape or not torch.equal(actual, expected.to(x.dtype)):
            file = checkpoint.file.with_name(ADAPTER_FILE)
            raise UserError(
                f"{file}: tensor '{name}' {tuple(x.shape)} is not the base's {tuple(expected.shape)}: another base?"
            )


def save(model: PatchedModel, config: Config, folder: Path) -> None:
    """Write a folder in the official layout, whole or not at all; tensors in the dtype they have in the model.

    As in the original, it does not tell 3D rope, heads and strides: the official code takes them from its command
    line. Raises UserError for what that code cannot do.
    """
    config = patch_folder.effective_config(model, config)
    _check_supported(config, folder)

    wrapper, patch_file = (lora.PREFIX, WITH_LORA) if config.lora.r else ("", WITHOUT_LORA)
    patches: dict[str, Tensor] = {}
    for prefix, side in zip(PREFIXES, config.sides):
        for name, x in model.patches[side].state_dict().items():
            patches[f"{wrapper}model.{prefix}.{patch_name(name)}"] = x.detach().cpu().contiguous()
    adapter = _official_adapter(lora.state(model.base.hf, *model.lora_patches))

    with atomic_folder(folder) as temporary:
        _write_json(_settings(model, config), temporary / CONFIG_FILE)
        torch.save(patches, temporary / patch_file)
        if adapter:
            _write_json(_adapter_settings(config, adapter), temporary / ADAPTER_CONFIG)
            adapter = {name: x.cpu().contiguous() for name, x in adapter.items()}
            save_file(adapter, temporary / ADAPTER_FILE, {"format": "pt"})


def _check_supported(config: Config, folder: Path) -> None:
    """Raises UserError for a model that the official code cannot build."""
    sides = list(config.sides.values())
    if config.base.name != "llava_onevision":
        raise UserError(f"{folder}: the official code has no base '{config.base.name}'; only llava_onevision")
    if len(sides) not in (1, 2):
        raise UserError(f"{folder}: {len(sides)} patches, the official layout holds one or two")

    for name, side in config.sides.items():
        for field, supported in (("value_projection", "shared"), ("neighborhood", "chunks"), ("weight", 1.0)):
            value = vars(side)[field]
            if value != supported:
                raise UserError(f"{folder}: sides.{name}.{field} is {value}; the official code knows only {supported}")
    for field in build.GEOMETRY:
        if vars(sides[0])[field] != vars(sides[-1])[field]:
            raise UserError(f"{folder}: patches of different {field}; the official code builds the second as the first")


def _settings(model: PatchedModel, config: Config) -> dict[str, object]:
    """config.json, of which the official code reads the last block; it builds the model from the base's own."""
    base = model.base
    assert isinstance(base, llava_onevision.Base), "_check_supported refuses other bases"
    text, vision = base.hf.config.text_config, base.hf.config.vision_config
    text_settings = {key: getattr(text, key, None) for key in _llava_onevision_layouts.TEXT_KEYS}
    several = len(config.sides) > 1

    return {
        "_name_or_path": config.base.path,
        "architectures": ["LlavaQwenForCausalLM"],
        "model_type": "pave_qwen2_multi_sides" if several else "pave_qwen2",
        **{key: value for key, value in text_settings.items() if value is not None},
        "hidden_act": text.hidden_act,
        "rope_theta": text.rope_parameters["rope_theta"],
        "mm_hidden_size": vision.hidden_size,
        "mm_patch_merge_type": "spatial_unpad",
        "mm_projector_type": "mlp2x_gelu",
        "mm_spatial_pool_mode": base.pool,
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_tower": "google/siglip-so400m-patch14-384",
        "tokenizer_model_max_length": config.data.max_length,
        "tokenizer_padding_side": "right",
        "feat_combine_method": "add",
        "mm_newline_position": base.newline,
        "mm_video_tower": "opensora",
        "temporal_aggregator_type": "pmv5",
        **({"temporal_aggregator2_type": "pmv5"} if several else {}),
        "train_addition_start_end_tokens": False,
        "tune_temporal_aggregator": not config.lora.r,
    }


def _adapter_settings(config: Config, adapter: Mapping[str, Tensor]) -> dict[str, object]:
    """adapter_config.json with fields that every peft since 0.10 knows."""
    modules = {name.removeprefix(lora.PREFIX).partition(".lora_")[0] for name in adapter}
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


def _write_json(content: Mapping[str, object], file: Path) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")
