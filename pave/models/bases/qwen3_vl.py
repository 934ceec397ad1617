"""Qwen3-VL on the transformers class: a time stamp before each row, and features of inner layers of the tower.

Those features ("deep stack") are added to the visual tokens inside the first layers of the LLM. They come behind the
tokens of `encode`, which are as many times wider; patches change the tokens and nothing behind them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from pave.models.base import EncodedChat, History, Labels
from pave.models.bases import _loading, _qwen_chat, _qwen_vl
from pave.models.bases._qwen_vl import PixelSettings
from pave.types import VIDEO_TOKEN_ID, VideoTokens

START, END = "<|vision_start|>", "<|vision_end|>"
SMALL = {
    "depth": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "deepstack_visual_indexes": [5, 11, 17],
}
LARGE = {
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "deepstack_visual_indexes": [8, 16, 24],
}


def _config(
    hidden: int, mlp: int, layers: int, heads: int, tied: bool, tower: Mapping[str, object]
) -> dict[str, object]:
    text = {
        **_loading.llm_shapes(hidden, mlp, layers, heads, 8, 151936, tied),
        "head_dim": 128,
        "max_position_embeddings": 262144,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5_000_000.0, "mrope_section": [24, 20, 20]},
    }
    return {"text_config": text, "vision_config": {**tower, "out_hidden_size": hidden}, "tie_word_embeddings": tied}


PUBLISHED = {
    "Qwen/Qwen3-VL-2B-Instruct": _config(2048, 6144, 28, 16, True, SMALL),
    "Qwen/Qwen3-VL-4B-Instruct": _config(2560, 9728, 36, 32, True, SMALL),
    "Qwen/Qwen3-VL-8B-Instruct": _config(4096, 12288, 36, 32, False, LARGE),
}


class Base(_qwen_vl.QwenVL):
    """Qwen3-VL: rows stand apart, each after its time; features of inner layers go with the tokens."""

    model_type = "qwen3_vl"
    expected = "a Qwen3-VL checkpoint"
    model_class = Qwen3VLForConditionalGeneration
    config_class = Qwen3VLConfig
    published = PUBLISHED
    default_pixels = PixelSettings(4096, 25_165_824, (0.5,) * 3, (0.5,) * 3)

    def __init__(
        self, hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, pixel_settings: PixelSettings
    ) -> None:
        super().__init__(hf, tokenizer, pixel_settings)
        self.llm.register_forward_pre_hook(_unpack_deep_stack, with_kwargs=True)

    @staticmethod
    def sample_frames(n: int, fps: float) -> np.ndarray:
        """Choose int64[T] of n frames as the published processor: evenly spaced from the first to the last."""
        return np.linspace(0, n - 1, int(_qwen_vl.published_frame_count(n, fps))).round().astype(np.int64)

    def frame_size(self, frames: int, height: int, width: int) -> tuple[int, int]:
        """Height and width of each frame, so that all frames together have as many pixels as set."""
        multiple = self.patch_size * self.merge_size
        grow = max(1.0, multiple / min(height, width))
        limits = self.pixel_settings.min_pixels / frames, self.pixel_settings.max_pixels / frames
        return _qwen_vl.fit_size(int(height * grow), int(width * grow), multiple, *limits)

    def encode(self, pixels: Tensor, prompt_ids: Tensor | None = None) -> VideoTokens:
        """Encode float[B,t,2*3,h,w] into query float[B,t,S,D] and embeds float[B,t,S,D*(1+n)].

        Embeds are the tokens with n features of inner layers behind them.
        """
        tower = self.run_tower(pixels)
        features = torch.cat([tower.pooler_output, *tower.deepstack_features], -1)
        # Not -1: a skeleton gives no number of tokens.
        width = self.embed_dim * (1 + len(tower.deepstack_features))
        embeds = features.view(*pixels.shape[:2], -1, width)
        return VideoTokens(embeds[..., : self.embed_dim], embeds)

    def tokens_in_block(self, grid: tuple[int, int, int]) -> int:
        """Count the visual tokens that follow each other without text between them: those of a row."""
        return grid[1] * grid[2] // self.merge_size**2

    def visual_token_ids(self, frames: int, size: tuple[int, ...], seconds: Tensor | None) -> list[int]:
        """Token ids of a video of so many rows: of each row its time, and VIDEO_TOKEN_ID for each token."""
        assert seconds is not None, "time stamps need times"
        row = [VIDEO_TOKEN_ID] * self.num_visual_tokens(1, size)
        start, end = self.tokenizer.convert_tokens_to_ids([START, END])
        # Stamp by stamp: a tokenizer takes what stands between special tokens by itself.
        stamps = self.tokenizer([f"<{time:.1f} seconds>" for time in seconds.tolist()], add_special_tokens=False)

        ids: list[int] = []
        for stamp in stamps.input_ids:
            ids += [*stamp, start, *row, end]
        return ids

    def chat(
        self, question: str, history: History = (), answer: str | None = None, labels: Labels = "answers"
    ) -> EncodedChat:
        """Encode a conversation by Qwen2's template, without a system text."""
        conversation = _qwen_chat.turns(question, history, answer, _qwen_chat.TAG)
        return _qwen_chat.encode(self.tokenizer, conversation, labels, system=None)


def _unpack_deep_stack(
    llm: PreTrainedModel, arguments: tuple[object, ...], keywords: dict[str, Any]
) -> tuple[tuple[object, ...], dict[str, Any]] | None:
    """Give what stands behind the tokens to the LLM's layers; text has zeros there, which add nothing."""
    embeds = keywords.get("inputs_embeds")
    width = llm.config.hidden_size
    if embeds is None or embeds.shape[-1] == width:
        return None

    tokens, *features = embeds.split(width, -1)
    everywhere = torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
    return arguments, {
        **keywords,
        "inputs_embeds": tokens.contiguous(),
        "visual_pos_masks": everywhere,
        "deepstack_visual_embeds": [x.flatten(0, 1) for x in features],
    }
