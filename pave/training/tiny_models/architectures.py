"""The other bases at the size of the small world: built with random weights, saved in their published layouts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
)

from pave.models.base import Base
from pave.models.bases import _qwen_vl, _vicuna_chat, ppllava, qwen2_5_vl, video_llava, video_panda
from pave.models.bases._loading import build_projector
from pave.models.encoders import ppllava_projector, video_panda_tower
from pave.tasks import sideworld
from pave.training.tiny_models.llava_onevision import TEXT, make_tokenizer
from pave.utils.atomic import atomic_folder

CLIP = {"hidden_size": 96, "intermediate_size": 288, "num_hidden_layers": 4, "num_attention_heads": 4}
"""Of towers in the style of CLIP; the last layer is never needed."""
SPECIAL_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
"""Of `vicuna_tokenizer`."""
LLAMA: dict[str, Any] = {**TEXT, "tie_word_embeddings": False, **SPECIAL_IDS}
QWEN_SPECIAL_TOKENS = {
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
}
"""Tokens of Qwen2.5-VL by their name in its settings."""
PANDA_HIDDEN_DIM = 256
TOKEN_ROWS = 16
"""Rows of visual tokens a clip: what the shipped base has, half a second each."""


@dataclass(frozen=True)
class TinyBase:
    """A tiny base with random weights."""

    base: Base
    frames: int
    """Key frames of a video: each row of visual tokens is half a second of the small world."""
    quarter_tokens: Callable[[Tensor], Tensor]
    """Selects the tokens of the four quarters of the picture: embeds float[B,t,S,D] -> float[B,t,4,D]."""
    projector_output: nn.Module
    """The layer that visual tokens come out of."""
    save_files: Callable[[Path], None]
    """Writes all but the tokenizer into a folder."""

    def save(self, folder: Path) -> None:
        """Write the base in its published layout, whole or not at all."""
        with atomic_folder(folder) as temporary:
            self.save_files(temporary)
            self.base.tokenizer.save_pretrained(temporary)


def build_qwen2_5_vl() -> TinyBase:
    """Build a Qwen2.5-VL: two frames and 2 x 2 patches of 14 pixels a token, 4 tokens a row."""
    tokenizer = make_tokenizer(sideworld.vocabulary_texts())
    tokenizer.add_special_tokens({"additional_special_tokens": list(QWEN_SPECIAL_TOKENS.values())})
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    text = {name: value for name, value in TEXT.items() if name != "rope_theta"}
    text |= {
        "tie_word_embeddings": False,
        "vocab_size": len(tokenizer),
        "rope_parameters": {"rope_type": "default", "rope_theta": TEXT["rope_theta"], "mrope_section": [4, 6, 6]},
        "bos_token_id": pad,
        "eos_token_id": eos,
    }
    vision = {
        "depth": 3,
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_heads": 4,
        "out_hidden_size": 128,
        "patch_size": 14,
        "window_size": 56,
        "fullatt_block_indexes": [1],
        "tokens_per_second": 2,
        "initializer_range": TEXT["initializer_range"],
    }
    special_ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in QWEN_SPECIAL_TOKENS.items()}
    config = Qwen2_5_VLConfig(**special_ids, tie_word_embeddings=False, vision_config=vision, text_config=text)
    hf = Qwen2_5_VLForConditionalGeneration(config)
    hf.generation_config.update(bos_token_id=pad, eos_token_id=eos, pad_token_id=pad)
    pixels = _qwen_vl.PixelSettings(56 * 56, 56 * 56)
    base = qwen2_5_vl.Base(hf, tokenizer, pixels)

    def save_files(folder: Path) -> None:
        # The base has taken the tower out of the model.
        hf.model.visual = base.vision_tower
        hf.save_pretrained(folder)
        limits = {"min_pixels": pixels.min_pixels, "max_pixels": pixels.max_pixels}
        (folder / "preprocessor_config.json").write_text(json.dumps(limits))
        hf.model.visual = None

    return TinyBase(base, 32, lambda embeds: embeds, base.vision_tower.merger.mlp[2], save_files)


def build_video_llava() -> TinyBase:
    """Build the port of Video-LLaVA: a class token and 2 x 2 patches of 32 pixels a frame."""
    tokenizer = vicuna_tokenizer()
    vision = {**CLIP, "hidden_size": 192, "intermediate_size": 576, "image_size": 64, "patch_size": 32}
    config = VideoLlavaConfig(
        vision_config={**vision, "model_type": "clip_vision_model"},
        text_config={**LLAMA, "vocab_size": len(tokenizer), "model_type": "llama"},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
    )
    hf = VideoLlavaForConditionalGeneration(config)
    hf.generation_config.update(**SPECIAL_IDS)
    image_tower, projector = hf.model.image_tower, hf.model.multi_modal_projector
    base = video_llava.Base.of_port(hf, tokenizer)

    def save_files(folder: Path) -> None:
        # The base has taken towers and projector out of the model.
        hf.model.video_tower, hf.model.image_tower = base.vision_tower.hf, image_tower
        hf.model.multi_modal_projector = projector
        hf.save_pretrained(folder)
        hf.model.video_tower = hf.model.image_tower = hf.model.multi_modal_projector = None

    return TinyBase(base, 16, lambda embeds: embeds[:, :, 1:], projector.linear_2, save_files)


def build_video_panda() -> TinyBase:
    """Build a Video-Panda: a class token, then 2 x 2 tokens of 28 pixels a frame, a split token after each row."""
    tokenizer = vicuna_tokenizer()
    hf = video_panda.Vicuna(LlamaConfig(**LLAMA, vocab_size=len(tokenizer)))
    tower = video_panda_tower.Tower(PANDA_HIDDEN_DIM)
    projector = build_projector(PANDA_HIDDEN_DIM, TEXT["hidden_size"])
    base = video_panda.Base(hf, tower, projector, tokenizer, 56)

    def save_files(folder: Path) -> None:
        modules: dict[str, nn.Module] = {"": hf, video_panda_tower.PREFIXES[0]: tower}
        modules[video_panda.PROJECTOR_PREFIXES[0]] = projector
        config = {**hf.config.to_dict(), "image_size": 56, "video_hidden_size": PANDA_HIDDEN_DIM}
        _write_checkpoint(folder, modules, {**config, "rope_theta": TEXT["rope_theta"]})

    return TinyBase(base, 16, lambda embeds: embeds[:, :, [1, 2, 4, 5]], projector[2], save_files)


def build_ppllava() -> TinyBase:
    """Build a PPLLaVA: 6 x 6 patches of 14 pixels, pooled in windows of 2 x 3 x 3 by the question: 4 tokens a row."""
    tokenizer, prompt_tokenizer = vicuna_tokenizer(), clip_tokenizer()
    hf = ppllava.Vicuna(LlamaConfig(**LLAMA, vocab_size=len(tokenizer)))
    sizes = ppllava_projector.Sizes(
        *(96, 288, 4, 4, 14, 6, 0, 64), len(prompt_tokenizer), *(64, 128, 2, 1, 64), TEXT["hidden_size"]
    )
    tower, projector = ppllava_projector.build(sizes)

    # The default initial embeddings are larger than the patches and words that they are added to.
    embeddings = projector.clip_text_model.embeddings
    for table in (
        tower.embeddings.position_embedding.weight,
        embeddings.token_embedding.weight,
        embeddings.position_embedding_res,
    ):
        nn.init.normal_(table, std=TEXT["initializer_range"])
    # CLIP begins with a scale like this one, and ends at 100.
    nn.init.constant_(projector.logit_scale, math.log(14))
    base = ppllava.Base(hf, tower, projector, tokenizer, prompt_tokenizer, ppllava_projector.TEMPERATURE)

    vision = {**CLIP, "patch_size": sizes.patch, "image_size": sizes.patch * sizes.edge, "projection_dim": sizes.shared}
    config = {**ppllava.REQUIRED_CONFIG, "btadapter": False, "model_type": "llava_next", "vision_config": vision}

    def save_files(folder: Path) -> None:
        modules: dict[str, nn.Module] = {"language_model.": hf, ppllava_projector.VISION_PREFIX: tower}
        modules[ppllava_projector.PROJECTOR_PREFIX] = projector
        text = {name: getattr(hf.config, name) for name in (*LLAMA, "vocab_size") if name != "rope_theta"}
        _write_checkpoint(folder, modules, {**config, "text_config": text})
        prompt_tokenizer.save_pretrained(folder / "clip")

    return TinyBase(base, 32, lambda embeds: embeds, projector.linear_2, save_files)


BASES: dict[str, Callable[[], TinyBase]] = {
    "qwen2_5_vl": build_qwen2_5_vl,
    "video_llava": build_video_llava,
    "video_panda": build_video_panda,
    "ppllava": build_ppllava,
}
"""Builders by the name of the base."""


def _write_checkpoint(folder: Path, modules: Mapping[str, nn.Module], config: Mapping[str, object]) -> None:
    """Write weights of modules, by the prefix of their names, and settings, in the published layout."""
    state = {}
    for prefix, module in modules.items():
        for name, x in module.state_dict().items():
            state[f"{prefix}{name}"] = x.contiguous().clone()
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    (folder / "generation_config.json").write_text(json.dumps(SPECIAL_IDS))


def vicuna_tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on the small world's texts and Vicuna's template, with Llama's special tokens."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    texts = sideworld.vocabulary_texts()

    turns = [f"USER: {text} ASSISTANT: {text}" for text in texts]
    special = ["<unk>", "<s>", "</s>", "<pad>", "<image>", "<video>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        [*turns, *texts, _vicuna_chat.SYSTEM],
        trainers.BpeTrainer(vocab_size=640, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        **{"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
        additional_special_tokens=["<image>", "<video>"],
        model_max_length=4096,
    )


def clip_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer of the small world's words, whose end token has the largest id, as CLIP's has."""
    split = pre_tokenizers.Whitespace()
    words = sorted({word for text in sideworld.vocabulary_texts() for word, _ in split.pre_tokenize_str(text)})
    ids = {word: i for i, word in enumerate(["<unk>", *words, "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = split
    ends = [(token, ids[token]) for token in ("<|startoftext|>", "<|endoftext|>")]
    tokenizer.post_processor = processors.TemplateProcessing("<|startoftext|> $A <|endoftext|>", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<|endoftext|>")
