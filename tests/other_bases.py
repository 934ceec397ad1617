"""Folders of tiny bases with random weights, as each is published: Video-LLaVA, its port, Qwen2.5-VL."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
)

from pave.encoders import languagebind_video
from pave.pretrain.base import make_tokenizer

LAYERS = 2
"""Of every LLM here."""
EXTRA = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "patch_size": 14,
    "image_size": 28,
}


def llama_tokenizer(video: bool) -> PreTrainedTokenizerFast:
    """A BPE in the style of Llama's: a space before all text, spaces inside words, bytes for what is unknown."""
    bpe = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bpe.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    special = ["<unk>", "<s>", "</s>", *(["<image>", "<video>", "<pad>"] if video else [])]
    corpus = ["A chat between a curious human and an assistant. USER: what is heard? ASSISTANT: a dog barks\n"] * 3
    bpe.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=130, special_tokens=[*special, "<0x0A>"], show_progress=False)
    )
    pad = {"pad_token": "<pad>", "additional_special_tokens": ["<image>", "<video>"]} if video else {}
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>", **pad)


def make_port(folder: Path) -> Path:
    """Video-LLaVA as transformers saves it."""
    tokenizer = llama_tokenizer(video=True)
    torch.manual_seed(0)
    config = VideoLlavaConfig(
        vision_config={**VISION, "model_type": "clip_vision_model"},
        text_config={**TEXT, "vocab_size": len(tokenizer) + 6, "model_type": "llama"},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
    )
    hf = VideoLlavaForConditionalGeneration(config)
    hf.generation_config.update(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    hf.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_original(folder: Path) -> Path:
    """Video-LLaVA as published: the LLM's names bare, both towers and the projector beside them."""
    tokenizer = llama_tokenizer(video=False)
    torch.manual_seed(1)
    llm = LlamaForCausalLM(LlamaConfig(**TEXT, vocab_size=len(tokenizer)))
    tower = languagebind_video.Tower(16, 24, 4, 2, 14, 2)  # one layer less than it says
    for parameter in tower.parameters():
        nn.init.normal_(parameter, std=0.1)
    state = llm.state_dict()
    state |= {f"model.video_tower.video_tower.{name}": x for name, x in tower.state_dict().items()}
    state |= {
        f"model.video_tower.video_tower.encoder.layers.3.{n}": x for n, x in tower.encoder.layers[0].named_parameters()
    }
    state |= {f"model.video_tower.video_tower.post_layernorm.{n}": torch.ones(16) for n in ("weight", "bias")}
    state["model.image_tower.image_tower.embeddings.class_embedding"] = torch.zeros(16)
    state |= {
        f"model.mm_projector.{i}.{n}": torch.randn(s) * 0.2
        for i, w in ((0, 16), (2, 32))
        for n, s in (("weight", (32, w)), ("bias", (32,)))
    }
    save_file(
        {name: x.contiguous().clone() for name, x in state.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    told = {"model_type": "llava", "mm_video_tower": "LanguageBind/LanguageBind_Video_merge"}
    vision = {"vision_config": {**VISION, "num_hidden_layers": 4}}
    (folder / "config.json").write_text(json.dumps({**llm.config.to_dict(), **told, **vision}))
    generation = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    tokenizer.save_pretrained(folder)
    return folder


def make_qwen(folder: Path) -> Path:
    """Qwen2.5-VL whose tower looks in windows of 2 x 2 tokens, and everywhere in its second layer."""
    tokenizer = make_tokenizer(["what is heard? a dog barks"] * 3)
    tokenizer.add_special_tokens({"additional_special_tokens": EXTRA})
    ids = dict(zip(("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id"), EXTRA))
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(
        **{name: tokenizer.convert_tokens_to_ids(token) for name, token in ids.items()},
        vision_config={
            **{"depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 48},
            **{"patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1], "tokens_per_second": 2},
        },
        text_config={
            **{"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": LAYERS, "num_attention_heads": 4},
            **{"num_key_value_heads": 2, "vocab_size": len(tokenizer) + 7, "max_position_embeddings": 1024},
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 2]},
            **{"bos_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id},
        },
    )
    hf = Qwen2_5_VLForConditionalGeneration(config)
    for parameter in hf.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.2)  # so that positions matter
    bos, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    hf.generation_config.update(bos_token_id=bos, eos_token_id=eos, pad_token_id=bos)
    hf.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"min_pixels": 28 * 28 * 4, "max_pixels": 28 * 28 * 12})
    )
    return folder


def randomise(tensors: Iterable[Tensor]) -> None:
    """Make a patch or a LoRA do something."""
    torch.manual_seed(2)
    for x in tensors:
        nn.init.normal_(x, std=0.3)
