"""Names and shapes of LLaVA-OneVision: the lmms-lab layout on disk, the transformers classes in memory."""

from __future__ import annotations

import json
import re
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
from pave.models.encoders import siglip
from pave.types import UserError
from pave.utils.atomic import atomic_folder

TO_HF = {
    siglip.LMMS: "model.vision_tower.",
    r"^model\.mm_projector\.0\.": "model.multi_modal_projector.linear_1.",
    r"^model\.mm_projector\.2\.": "model.multi_modal_projector.linear_2.",
    r"^model\.(layers|embed_tokens|norm)\.": r"model.language_model.\1.",
}
_SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 26, "num_attention_heads": 16}
PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    f"lmms-lab/llava-onevision-qwen2-{size}-ov": (
        {
            "hidden_size": hidden,
            "intermediate_size": mlp,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "vocab_size": vocab,
            "tie_word_embeddings": tied,
        },
        {**_SO400M, "image_size": 384, "patch_size": 14},
    )
    for size, hidden, mlp, layers, heads, kv_heads, vocab, tied in (
        ("0.5b", 896, 4864, 24, 14, 2, 151936, True),
        ("7b", 3584, 18944, 28, 28, 4, 152064, False),
    )
}
"""Shapes of the published bases, so that `pave show` needs no weights."""


def newline_for(newline: Newline, merge_type: str) -> Newline:
    """The mode that a config's merge type leaves of a newline mode."""
    # Quirk: a flat merge has no newlines at all, and one_token needs "unpad" in the type's name (as the base has it).
    if merge_type == "flat" or (newline == "one_token" and merge_type != "spatial_unpad"):
        return "no_token"
    return newline


def config(text: dict[str, Any], vision: dict[str, Any]) -> LlavaOnevisionConfig:
    """The transformers config of plain shapes; what is not named is the same for all published bases."""
    rope_theta = text.get("rope_theta", 1_000_000.0)
    fixed = {"rms_norm_eps": 1e-6, "max_position_embeddings": 32768}
    shapes = {**fixed, **{k: v for k, v in text.items() if k != "rope_theta"}}
    return LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**vision, vision_use_head=False),
        text_config=Qwen2Config(**shapes, rope_parameters={"rope_type": "default", "rope_theta": rope_theta}),
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


def lmms_config(folder: Path, raw: dict[str, Any], vision_heads: int | None) -> LlavaOnevisionConfig:
    """The transformers config of an lmms-lab folder; the tower's shapes come from its tensors."""
    return config({k: raw[k] for k in TEXT_KEYS if k in raw}, _tower_shapes(folder, raw, vision_heads))


def _tower_shapes(folder: Path, raw: dict[str, Any], heads: int | None) -> dict[str, Any]:
    """SigLIP's shapes: from `vision_config` where a folder has one (ours do), else from the weights."""
    if "vision_config" in raw:
        return raw["vision_config"]
    sizes: dict[str, list[int]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            names = [name for name in tensors.keys() if re.match(siglip.LMMS, name)]  # noqa: SIM118
            sizes |= {re.sub(siglip.LMMS, "", name): tensors.get_slice(name).get_shape() for name in names}
    shapes = siglip.shapes(folder, sizes)
    heads = heads or siglip.HEADS.get(shapes["hidden_size"])
    if heads is None:
        width = shapes["hidden_size"]
        raise UserError(f"{folder}: the number of heads of a {width}-wide tower is not in its files; pass vision_heads")
    return {**shapes, "num_attention_heads": heads}


# From each spelling of the transformers names.
_TO_LMMS = (
    (siglip.HF, "model.vision_tower.vision_tower.vision_model."),
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
    """A transformers name of a tensor in the lmms-lab layout."""
    return _rename(name, _TO_LMMS)


def hub_name(name: str) -> str:
    """An lmms-lab name of a tensor as the hub's transformers files have it, which every version reads."""
    return _rename(name, _TO_HUB)


def _rename(name: str, table: tuple[tuple[str, str], ...]) -> str:
    for old, new in table:
        renamed, found = re.subn(old, new, name)
        if found:
            return renamed
    return name


def settings(text: dict[str, Any], vision: dict[str, Any]) -> dict[str, Any]:
    """config.json of a base in the lmms-lab layout; `vision_config` is our addition."""
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
    text: dict[str, Any],
    vision: dict[str, Any],
    folder: Path,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Write a base in the lmms-lab layout, with its tokenizer."""
    state = hf.state_dict()
    if text["tie_word_embeddings"]:
        del state["lm_head.weight"]
    tensors = {lmms_name(name): x.detach().to(dtype).contiguous() for name, x in state.items()}
    ends = {"bos_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    with atomic_folder(folder) as temporary:
        save_file(tensors, temporary / "model.safetensors")
        (temporary / "config.json").write_text(json.dumps({**settings(text, vision), **ends}, indent=1))
        generation = {**ends, "pad_token_id": tokenizer.pad_token_id}
        (temporary / "generation_config.json").write_text(json.dumps(generation, indent=1))
        tokenizer.save_pretrained(temporary)


def build(text: dict[str, Any], vision: dict[str, Any]) -> LlavaOnevisionForConditionalGeneration:
    """A model with random weights from plain shapes."""
    return LlavaOnevisionForConditionalGeneration(config(text, vision))
