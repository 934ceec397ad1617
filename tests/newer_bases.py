"""Folders of tiny bases with random weights, as transformers saves them: Qwen3-VL, InternVL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from other_bases import EXTRA, LAYERS
from torch import nn
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from pave.pretrain.base import make_tokenizer

PLACES = ["<img>", "</img>", "<IMG_CONTEXT>"]
WORDS = ["what is heard? a dog barks Frame10: 1 2 3 4 5 6 7 8 9 <0.5 seconds>"] * 3


def tokenizer_of(marks: list[str]) -> PreTrainedTokenizerFast:
    """With some special tokens more."""
    tokenizer = make_tokenizer(WORDS)
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    return tokenizer


def save(hf: Any, tokenizer: PreTrainedTokenizerFast, folder: Path, what: str, processor: dict[str, Any]) -> Path:
    """With weights large enough that positions and deeper features matter."""
    torch.manual_seed(0)
    for parameter in hf.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.2)
    bos, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    hf.generation_config.update(bos_token_id=bos, eos_token_id=eos, pad_token_id=bos)
    hf.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / f"{what}.json").write_text(json.dumps(processor))
    return folder


def text_of(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Shapes of a tiny LLM."""
    return {
        **{"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": LAYERS, "num_attention_heads": 4},
        **{"num_key_value_heads": 2, "vocab_size": len(tokenizer) + 7, "max_position_embeddings": 1024},
        **{"bos_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id},
    }


def make_qwen3(folder: Path) -> Path:
    """Qwen3-VL with one feature for each of the LLM's layers."""
    tokenizer = tokenizer_of(EXTRA)
    ids = dict(zip(("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id"), EXTRA))
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 2], "mrope_interleaved": True}
    config = Qwen3VLConfig(
        **{name: tokenizer.convert_tokens_to_ids(token) for name, token in ids.items()},
        vision_config={
            **{"depth": 3, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 48},
            **{"patch_size": 16, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]},
        },
        text_config={**text_of(tokenizer), "head_dim": 12, "rope_parameters": rope},
    )
    size = {"shortest_edge": 6 * 32 * 32 * 4, "longest_edge": 6 * 32 * 32 * 12}  # of the 6 frames of tests
    processor = {"size": size, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    return save(Qwen3VLForConditionalGeneration(config), tokenizer, folder, "video_preprocessor_config", processor)


def make_internvl(folder: Path) -> Path:
    """InternVL with 4 tokens a frame."""
    tokenizer = tokenizer_of(PLACES)
    config = InternVLConfig(
        image_token_id=tokenizer.convert_tokens_to_ids(PLACES[2]),
        image_seq_length=4,
        vision_config={
            **{"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2},
            **{"image_size": [56, 56], "patch_size": [14, 14], "layer_scale_init_value": 1.0},
        },
        text_config={**text_of(tokenizer), "model_type": "qwen2"},
        tie_word_embeddings=False,
    )
    processor = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3]}
    return save(InternVLForConditionalGeneration(config), tokenizer, folder, "preprocessor_config", processor)
