"""Folders of tiny bases with random weights, as each is published."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
)

from pave.models.encoders import languagebind_video
from pave.models.encoders import ppllava_projector as encoder
from pave.models.encoders.ppllava_projector import Sizes
from pave.training.tiny_models.llava_onevision import make_tokenizer

LAYERS = 2
"""Of every LLM here."""

QWEN_TOKENS = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]

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
    published = {"model_type": "llava", "mm_video_tower": "LanguageBind/LanguageBind_Video_merge"}
    vision = {"vision_config": {**VISION, "num_hidden_layers": 4}}
    return save_published(state, {**llm.config.to_dict(), **published, **vision}, tokenizer, folder)


def save_published(
    state: dict[str, Tensor], config_json: dict[str, Any], tokenizer: PreTrainedTokenizerFast, folder: Path
) -> Path:
    """Write the folder of a Vicuna base as published."""
    tensors = {name: x.contiguous().clone() for name, x in state.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config_json))
    special_ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(special_ids))
    tokenizer.save_pretrained(folder)
    return folder


def randomise(tensors: Iterable[Tensor]) -> None:
    """Make a patch or a LoRA do something."""
    torch.manual_seed(2)
    for x in tensors:
        nn.init.normal_(x, std=0.3)


INTERNVL_TOKENS = ["<img>", "</img>", "<IMG_CONTEXT>"]
WORDS = ["what is heard? a dog barks Frame10: 1 2 3 4 5 6 7 8 9 <0.5 seconds>"] * 3


def make_marked_tokenizer(special_tokens: list[str], texts: list[str] = WORDS) -> PreTrainedTokenizerFast:
    """The tokenizer of the small world with these special tokens added."""
    tokenizer = make_tokenizer(texts)
    tokenizer.add_special_tokens({"additional_special_tokens": special_tokens})
    return tokenizer


def qwen_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """Ids of Qwen's special tokens by their names in a config."""
    names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    return dict(zip(names, tokenizer.convert_tokens_to_ids(QWEN_TOKENS)))


def save(
    hf: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    processor_name: str,
    processor: dict[str, Any],
) -> Path:
    """Write a model of transformers, with weights large enough that positions and features of inner layers matter."""
    torch.manual_seed(0)
    for parameter in hf.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.2)
    bos, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    hf.generation_config.update(bos_token_id=bos, eos_token_id=eos, pad_token_id=bos)
    hf.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / f"{processor_name}.json").write_text(json.dumps(processor))
    return folder


def text_of(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Shapes of a tiny LLM."""
    return {
        **{"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": LAYERS, "num_attention_heads": 4},
        **{"num_key_value_heads": 2, "vocab_size": len(tokenizer) + 7, "max_position_embeddings": 1024},
        **{"bos_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id},
    }


def make_qwen(folder: Path) -> Path:
    """Qwen2.5-VL whose tower attends in windows of 2 x 2 tokens, and everywhere in its second layer."""
    tokenizer = make_marked_tokenizer(QWEN_TOKENS, ["what is heard? a dog barks"] * 3)
    config = Qwen2_5_VLConfig(
        **qwen_ids(tokenizer),
        vision_config={
            **{"depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 48},
            **{"patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1], "tokens_per_second": 2},
        },
        text_config={
            **text_of(tokenizer),
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 2]},
        },
    )
    processor = {"min_pixels": 28 * 28 * 4, "max_pixels": 28 * 28 * 12}
    return save(Qwen2_5_VLForConditionalGeneration(config), tokenizer, folder, "preprocessor_config", processor)


def make_qwen3(folder: Path) -> Path:
    """Qwen3-VL with one feature for each of the LLM's layers."""
    tokenizer = make_marked_tokenizer(QWEN_TOKENS)
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 2], "mrope_interleaved": True}
    config = Qwen3VLConfig(
        **qwen_ids(tokenizer),
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
    tokenizer = make_marked_tokenizer(INTERNVL_TOKENS)
    config = InternVLConfig(
        image_token_id=tokenizer.convert_tokens_to_ids(INTERNVL_TOKENS[2]),
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


PPLLAVA_SIZES = Sizes(24, 32, 4, 2, 14, 6, 2, 8, 40, 64, 48, 2, 1, 16, 32)

PPLLAVA_CONFIG = {
    "pooling": "ppllava",
    "extend_clip": True,
    "btadapter": True,
    "btadapter_depth": PPLLAVA_SIZES.depth,
    "max_T": PPLLAVA_SIZES.max_frames,
    "pooling_kernel": [2, 3, 3],
    "pooling_stride": [2, 3, 3],
    "vision_config": {
        "hidden_size": PPLLAVA_SIZES.width,
        "intermediate_size": PPLLAVA_SIZES.inner,
        "num_hidden_layers": PPLLAVA_SIZES.layers,
        "num_attention_heads": PPLLAVA_SIZES.heads,
        "patch_size": 14,
        "image_size": 84,
        "projection_dim": PPLLAVA_SIZES.shared,
    },
}


def clip_tokenizer() -> PreTrainedTokenizerFast:
    """Words, with an end that has the largest id, as CLIP's."""
    words = ["<unk>", "what", "is", "heard", "?", "a", "dog", "barks", "human", "and", "the"]
    words += ["<|startoftext|>", "<|endoftext|>"]
    ids = {word: i for i, word in enumerate(words)}
    bare = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(word, ids[word]) for word in words[-2:]]
    bare.post_processor = processors.TemplateProcessing("<|startoftext|> $A <|endoftext|>", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=bare, unk_token="<unk>", pad_token="<|endoftext|>")


def make_ppllava(folder: Path) -> Path:
    """With the last layer and step, which hold NaN; CLIP's tokenizer inside."""
    tokenizer = llama_tokenizer(video=True)
    torch.manual_seed(0)
    llm = LlamaForCausalLM(LlamaConfig(**TEXT, vocab_size=len(tokenizer) + 6))
    state = {f"language_model.{name}": x for name, x in llm.state_dict().items()}
    for prefix, part in zip((encoder.VISION_PREFIX, encoder.PROJECTOR_PREFIX), encoder.build(PPLLAVA_SIZES)):
        for name, parameter in part.named_parameters():
            if parameter.ndim:
                nn.init.normal_(parameter, 1.0 if "norm" in name and "weight" in name else 0.0, 0.2)
            state[prefix + name] = parameter.detach()
    last = {"encoder.layers.2.": "encoder.layers.3."}
    last |= {f"btadapter_{x}_layers.0.": f"btadapter_{x}_layers.1." for x in "ST"}
    for old, new in last.items():
        state |= {n.replace(old, new): x * torch.nan for n, x in state.items() if encoder.VISION_PREFIX + old in n}
    state["image_newline"] = torch.zeros(32)
    text = {name: getattr(llm.config, name) for name in (*TEXT, "vocab_size")}
    clip_tokenizer().save_pretrained(folder / "clip")
    config_json = {**PPLLAVA_CONFIG, "model_type": "llava_next", "text_config": text}
    return save_published(state, config_json, tokenizer, folder)
