"""The other bases at the size of the small world: built with random weights, saved as each is published."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
)

from pave.models.bases import _vicuna_chat, ppllava, qwen2_5_vl, video_llava, video_panda
from pave.models.encoders import ppllava_projector as pooling
from pave.models.encoders import video_panda_tower as panda
from pave.tasks import sideworld as task
from pave.training.tiny_models.llava_onevision import TEXT, make_tokenizer
from pave.utils.atomic import atomic_folder

CLIP = {"hidden_size": 96, "intermediate_size": 288, "num_hidden_layers": 4, "num_attention_heads": 4}
"""Of towers in the style of CLIP; the last layer is never needed."""
LLAMA: dict[str, Any] = {**TEXT, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
EXTRA = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
"""Of Qwen2.5-VL's tokenizer."""
PANDA_WIDTH = 256
ROWS = 16
"""Rows of visual tokens a clip: what the shipped base has, half a second each."""


@dataclass(frozen=True)
class Small:
    """A base that has learnt nothing."""

    base: Any
    frames: int
    """Key frames a video: half a second of the small world for each row of visual tokens."""
    quarters: Callable[[Tensor], Tensor]
    """What a row tells of the four quarters of the picture: embeds float[B,t,S,D] -> float[B,t,4,D]."""
    last: nn.Module
    """The linear layer that visual tokens come out of."""
    save: Callable[[Path], None]


def qwen2_5_vl_() -> Small:
    """Two frames and 2 x 2 patches of 14 pixels a token, 4 tokens a row."""
    tokenizer = make_tokenizer(task.texts())
    tokenizer.add_special_tokens({"additional_special_tokens": list(EXTRA)})
    marks = dict(zip(("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id"), EXTRA))
    text = {name: value for name, value in TEXT.items() if name not in ("rope_theta", "tie_word_embeddings")}
    config = Qwen2_5_VLConfig(
        **{name: tokenizer.convert_tokens_to_ids(mark) for name, mark in marks.items()},
        tie_word_embeddings=False,
        vision_config={
            **{"depth": 3, "hidden_size": 96, "intermediate_size": 192, "num_heads": 4, "out_hidden_size": 128},
            **{"patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1], "tokens_per_second": 2},
            "initializer_range": TEXT["initializer_range"],
        },
        text_config={
            **text,
            "tie_word_embeddings": False,
            "vocab_size": len(tokenizer),
            "rope_parameters": {"rope_type": "default", "rope_theta": TEXT["rope_theta"], "mrope_section": [4, 6, 6]},
            **{"bos_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id},
        },
    )
    hf = Qwen2_5_VLForConditionalGeneration(config)
    bos, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    hf.generation_config.update(bos_token_id=bos, eos_token_id=eos, pad_token_id=bos)
    pixels = qwen2_5_vl.Pixels(56 * 56, 56 * 56)
    base = qwen2_5_vl.Qwen25VL(hf, tokenizer, pixels)

    def save(folder: Path) -> None:
        hf.model.visual = base.vision_tower
        hf.save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(
            json.dumps({"min_pixels": pixels.least, "max_pixels": pixels.most})
        )
        hf.model.visual = None

    return Small(base, 32, lambda embeds: embeds, base.vision_tower.merger.mlp[2], partial(_whole, save, tokenizer))


def video_llava_() -> Small:
    """The port: a class token and 2 x 2 patches of 32 pixels a frame."""
    tokenizer = vicuna_tokenizer()
    config = VideoLlavaConfig(
        vision_config={
            **{**CLIP, "hidden_size": 192, "intermediate_size": 576},
            **{"model_type": "clip_vision_model", "image_size": 64, "patch_size": 32},
        },
        text_config={**LLAMA, "vocab_size": len(tokenizer), "model_type": "llama"},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
    )
    hf = VideoLlavaForConditionalGeneration(config)
    hf.generation_config.update(bos_token_id=1, eos_token_id=2, pad_token_id=3)
    inside, pictures = hf.model, hf.model.image_tower
    base = video_llava._of_port(hf, tokenizer)

    def save(folder: Path) -> None:
        inside.video_tower, inside.image_tower = base.vision_tower.hf, pictures
        inside.multi_modal_projector = base.multi_modal_projector
        hf.save_pretrained(folder)
        inside.video_tower = inside.image_tower = inside.multi_modal_projector = None

    projector: Any = base.multi_modal_projector
    return Small(base, 16, lambda embeds: embeds[:, :, 1:], projector.linear_2, partial(_whole, save, tokenizer))


def video_panda_() -> Small:
    """A class token, then 2 x 2 cells of 28 pixels a frame, a split token after each row."""
    tokenizer = vicuna_tokenizer()
    hf = video_panda.Vicuna(LlamaConfig(**LLAMA, vocab_size=len(tokenizer)))
    tower, projector = panda.Tower(PANDA_WIDTH), video_panda._projector(PANDA_WIDTH, TEXT["hidden_size"])
    base = video_panda.VideoPanda(hf, tower, projector, tokenizer, 56)

    def save(folder: Path) -> None:
        parts: dict[str, nn.Module] = {"": hf, panda.PREFIXES[0]: tower, video_panda.PROJECTORS[0]: projector}
        config = {**hf.config.to_dict(), "image_size": 56, "video_hidden_size": PANDA_WIDTH}
        _write(folder, parts, {**config, "rope_theta": TEXT["rope_theta"]})

    return Small(base, 16, lambda embeds: embeds[:, :, [1, 2, 4, 5]], projector[2], partial(_whole, save, tokenizer))


def ppllava_() -> Small:
    """6 x 6 patches of 14 pixels, pooled in windows of 2 x 3 x 3 as the question wants: 4 tokens a row."""
    tokenizer, reader = vicuna_tokenizer(), clip_tokenizer()
    hf = ppllava.Vicuna(LlamaConfig(**LLAMA, vocab_size=len(tokenizer)))
    sizes = pooling.Sizes(96, 288, 4, 4, 14, 6, 0, 64, len(reader), 64, 128, 2, 1, 64, TEXT["hidden_size"])
    tower, projector = pooling.build(sizes)
    words = projector.clip_text_model.embeddings
    # Torch's own start is larger than what patches and words say.
    for table in (
        tower.embeddings.position_embedding.weight,
        words.token_embedding.weight,
        words.position_embedding_res,
    ):
        nn.init.normal_(table, std=TEXT["initializer_range"])
    # CLIP begins with a scale like this one, and ends at 100.
    nn.init.constant_(projector.logit_scale, math.log(14))
    base = ppllava.PPLLaVA(hf, tower, projector, tokenizer, reader, pooling.TEMPERATURE)
    vision = {**CLIP, "patch_size": sizes.patch, "image_size": sizes.patch * sizes.edge, "projection_dim": sizes.shared}
    told = {"pooling": "ppllava", "extend_clip": True, "btadapter": False, "model_type": "llava_next"}
    windows = {"pooling_kernel": list(pooling.VIDEO), "pooling_stride": list(pooling.VIDEO)}

    def save(folder: Path) -> None:
        parts: dict[str, nn.Module] = {"language_model.": hf, pooling.VISION: tower, pooling.PROJECTOR: projector}
        text = {name: getattr(hf.config, name) for name in (*LLAMA, "vocab_size") if name != "rope_theta"}
        _write(folder, parts, {**told, **windows, "vision_config": vision, "text_config": text})
        reader.save_pretrained(folder / "clip")

    return Small(base, 32, lambda embeds: embeds, projector.linear_2, partial(_whole, save, tokenizer))


BASES: dict[str, Callable[[], Small]] = {
    "qwen2_5_vl": qwen2_5_vl_,
    "video_llava": video_llava_,
    "video_panda": video_panda_,
    "ppllava": ppllava_,
}
"""By their plugin's name."""


def _whole(save: Callable[[Path], None], tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """A folder with its tokenizer, whole or not at all."""
    with atomic_folder(folder) as temporary:
        save(temporary)
        tokenizer.save_pretrained(temporary)


def _write(folder: Path, parts: dict[str, nn.Module], config: dict[str, Any]) -> None:
    """Parts by what stands before their names, and the settings, as published checkpoints have them."""
    state = {f"{prefix}{name}": x for prefix, part in parts.items() for name, x in part.state_dict().items()}
    save_file(
        {name: x.contiguous().clone() for name, x in state.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    (folder / "generation_config.json").write_text(json.dumps(ends))


def vicuna_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of the small world's texts and Vicuna's template, with Llama's special tokens."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    said = [f"USER: {text} ASSISTANT: {text}" for text in task.texts()]
    special = ["<unk>", "<s>", "</s>", "<pad>", "<image>", "<video>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        [*said, *task.texts(), _vicuna_chat.SYSTEM],
        trainers.BpeTrainer(vocab_size=640, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        **{"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
        additional_special_tokens=["<image>", "<video>"],
        model_max_length=4096,
    )


def clip_tokenizer() -> PreTrainedTokenizerFast:
    """Words of the small world's questions, with an end that has the largest id, as CLIP's."""
    split = pre_tokenizers.Whitespace()
    words = sorted({word for text in task.texts() for word, _ in split.pre_tokenize_str(text)})
    ids = {word: i for i, word in enumerate(["<unk>", *words, "<|startoftext|>", "<|endoftext|>"])}
    bare = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    bare.pre_tokenizer = split
    ends = [(mark, ids[mark]) for mark in ("<|startoftext|>", "<|endoftext|>")]
    bare.post_processor = processors.TemplateProcessing("<|startoftext|> $A <|endoftext|>", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=bare, unk_token="<unk>", pad_token="<|endoftext|>")
