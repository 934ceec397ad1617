"""Names and shapes of LLaVA-OneVision: the lmms-lab layout on disk, the transformers classes in memory."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerBase,
    Qwen2Config,
    SiglipVisionConfig,
)

from pave.models.base import Newline
from pave.models.bases._loading import Shapes, llm_shapes
from pave.models.encoders import siglip
from pave.types import UserError
from pave.utils.atomic import atomic_folder

TO_HF = {
    siglip.LMMS_PREFIX: "model.vision_tower.",
    r"^model\.mm_projector\.0\.": "model.multi_modal_projector.linear_1.",
    r"^model\.mm_projector\.2\.": "model.multi_modal_projector.linear_2.",
    r"^model\.(layers|embed_tokens|norm)\.": r"model.language_model.\1.",
}
_SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 26, "num_attention_heads": 16}

_PUBLISHED_TOWER = {**_SO400M, "image_size": 384, "patch_size": 14}
PUBLISHED = {
    "lmms-lab/llava-onevision-qwen2-0.5b-ov": (
        llm_shapes(896, 4864, 24, 14, 2, 151936, True),
        _PUBLISHED_TOWER,
    ),
    "lmms-lab/llava-onevision-qwen2-7b-ov": (
        llm_shapes(3584, 18944, 28, 28, 4, 152064, False),
        _PUBLISHED_TOWER,
    ),
}
"""Shapes of LLM and tower of the published bases, so that `pave show` needs no weights."""


def newline_for(newline: Newline, merge_type: str) -> Newline:
    """Newline mode of a base, where its config's merge type does not allow what is asked for."""
    # Quirk: a flat merge has no newlines at all, and one_token needs "unpad" in the type's name (as the base has it).
    if merge_type == "flat" or (newline == "one_token" and merge_type != "spatial_unpad"):
        return "no_token"
    return newline


def build_config(text: Shapes, vision: Shapes) -> LlavaOnevisionConfig:
    """Build the transformers config from plain shapes; what they leave out is the same for all published bases."""
    rope = {"rope_type": "default", "rope_theta": text.get("rope_theta", 1_000_000.0)}
    shapes = {"rms_norm_eps": 1e-6, "max_position_embeddings": 32768, **text}
    shapes.pop("rope_theta", None)

    return LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**vision, vision_use_head=False),
        text_config=Qwen2Config(**shapes, rope_parameters=rope),
        tie_word_embeddings=text["tie_word_embeddings"],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )


TEXT_KEYS = [
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "rms_norm_eps",
    "max_position_embeddings",
    "tie_word_embeddings",
    "rope_theta",
    "bos_token_id",
    "eos_token_id",
]
VISION_KEYS = [*_SO400M, "image_size", "patch_size"]


def read_lmms_config(folder: Path, config_json: Mapping[str, Any], vision_heads: int | None) -> LlavaOnevisionConfig:
    """Build the transformers config of an lmms-lab folder; the tower's shapes come from its tensors."""
    return build_config(
        {k: config_json[k] for k in TEXT_KEYS if k in config_json}, _tower_shapes(folder, config_json, vision_heads)
    )


def _tower_shapes(folder: Path, config_json: Mapping[str, Any], heads: int | None) -> Shapes:
    """SigLIP's shapes, from `vision_config` where a folder has one (ours do), else from the weights.

    Raises UserError where neither tells the number of heads.
    """
    if "vision_config" in config_json:
        return config_json["vision_config"]
    sizes: dict[str, list[int]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            names = [name for name in tensors.keys() if re.match(siglip.LMMS_PREFIX, name)]  # noqa: SIM118
            sizes |= {re.sub(siglip.LMMS_PREFIX, "", name): tensors.get_slice(name).get_shape() for name in names}
    shapes = siglip.tower_settings(folder, sizes)
    heads = heads or siglip.HEADS.get(shapes["hidden_size"])
    if heads is None:
        width = shapes["hidden_size"]
        raise UserError(f"{folder}: the number of heads of a {width}-wide tower is not in its files; pass vision_heads")
    return {**shapes, "num_attention_heads": heads}


# From each spelling of the transformers names.
_TO_LMMS = (
    (siglip.HF_PREFIX, "model.vision_tower.vision_tower.vision_model."),
    (r"^(model\.)?multi_modal_projector\.linear_1\.", "model.mm_projector.0."),
    (r"^(model\.)?multi_modal_projector\.linear_2\.", "model.mm_projector.2."),
    (r"^(model\.)?image_newline$", "model.image_newline"),
    (r"^(model\.language_model|language_model\.model)\.", "model."),
    (r"^language_model\.lm_head\.", "lm_head."),
)
_TO_HUB = (
    (r"^model\.vision_tower\.vision_tower\.", "vision_tower."),
    (r"^model\.mm_projector\.0\.", "multi_modal_projector.linear_1."),
    (r"^model\.mm_projector\.2\.", "multi_modal_projector.linear_2."),
    (r"^model\.image_newline$", "image_newline"),
    (r"^(model\.(layers|embed_tokens|norm)|lm_head)\.", r"language_model.\1."),
)


def lmms_name(name: str) -> str:
    """Name in the lmms-lab layout of a tensor that transformers calls `name`."""
    return _rename(name, _TO_LMMS)


def hub_name(name: str) -> str:
    """Name in the hub's transformers files, which every version reads, of a tensor that lmms-lab calls `name`."""
    return _rename(name, _TO_HUB)


def _rename(name: str, table: tuple[tuple[str, str], ...]) -> str:
    """Replace the first prefix of a table that the name begins with."""
    for prefix, replacement in table:
        renamed, count = re.subn(prefix, replacement, name)
        if count:
            return renamed
    return name


def lmms_config_json(text: Shapes, vision: Shapes) -> dict[str, object]:
    """Content of config.json in the lmms-lab layout; `vision_config` is our addition."""
    return {
        "architectures": ["LlavaQwenForCausalLM"],
        "model_type": "llava",
        **text,
        "mm_newline_position": "grid",
        "mm_patch_merge_type": "spatial_unpad",
        "mm_spatial_pool_mode": "bilinear",
        "vision_config": vision,
    }


def save(
    hf: LlavaOnevisionForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    text: Shapes,
    vision: Shapes,
    folder: Path,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Write a base in the lmms-lab layout, with its tokenizer."""
    state = hf.state_dict()
    if text["tie_word_embeddings"]:
        del state["lm_head.weight"]
    tensors = {lmms_name(name): x.detach().to(dtype).contiguous() for name, x in state.items()}
    special_ids = {"bos_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}

    with atomic_folder(folder) as temporary:
        save_file(tensors, temporary / "model.safetensors")
        (temporary / "config.json").write_text(json.dumps({**lmms_config_json(text, vision), **special_ids}, indent=1))
        generation = {**special_ids, "pad_token_id": tokenizer.pad_token_id}
        (temporary / "generation_config.json").write_text(json.dumps(generation, indent=1))
        tokenizer.save_pretrained(temporary)


def build_model(text: Shapes, vision: Shapes) -> LlavaOnevisionForConditionalGeneration:
    """Build a model with random weights from plain shapes."""
    return LlavaOnevisionForConditionalGeneration(build_config(text, vision))
