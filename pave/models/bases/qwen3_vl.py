"""Qwen3-VL on the transformers class: a time stamp before each row, and features of inner layers of the tower.

Those features ("deep stack") are added to the visual tokens inside the first layers of the LLM. They come behind the
tokens of `encode`, which are as many times wider; patches change the tokens and nothing behind them.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from pave.models.bases import _qwen_chat, _qwen_vl
from pave.models.bases._loading import Settings
from pave.models.bases._qwen_vl import Pixels, QwenVL
from pave.types import VIDEO, VideoTokens

START, END = "<|vision_start|>", "<|vision_end|>"
SMALL = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "deepstack_visual_indexes": [5, 11, 17]}
LARGE = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "deepstack_visual_indexes": [8, 16, 24]}


def _published(hidden: int, mlp: int, layers: int, heads: int, tied: bool, tower: dict[str, Any]) -> dict[str, Any]:
    text = {
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 262144,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5_000_000.0, "mrope_section": [24, 20, 20]},
    }
    return {"text_config": text, "vision_config": {**tower, "out_hidden_size": hidden}, "tie_word_embeddings": tied}


PUBLISHED = {
    "Qwen/Qwen3-VL-2B-Instruct": _published(2048, 6144, 28, 16, True, SMALL),
    "Qwen/Qwen3-VL-4B-Instruct": _published(2560, 9728, 36, 32, True, SMALL),
    "Qwen/Qwen3-VL-8B-Instruct": _published(4096, 12288, 36, 32, False, LARGE),
}


def choose(n: int, fps: float) -> np.ndarray:
    """int64[T], the frames that the published processor takes of n: evenly spaced from the first to the last."""
    return np.linspace(0, n - 1, int(_qwen_vl.two_a_second(n, fps))).round().astype(np.int64)


class Qwen3VL(QwenVL):
    """Rows stand apart, each after its time; deeper features go with the tokens."""

    choose = staticmethod(choose)

    def __init__(self, hf: Any, tokenizer: Any, pixels: Pixels) -> None:
        super().__init__(hf, tokenizer, pixels)
        self.lm.register_forward_pre_hook(_unpack, with_kwargs=True)

    def size(self, frames: int, high: int, wide: int) -> tuple[int, int]:
        """Height and width to which pictures are brought, so that all frames together have as many pixels as set."""
        unit = self.patch * self.merge
        grow = max(1.0, unit / min(high, wide))
        limits = (limit / frames for limit in (self.pixels.least, self.pixels.most))
        return _qwen_vl.fit(int(high * grow), int(wide * grow), unit, *limits)

    def encode(self, pixels: Tensor) -> VideoTokens:
        """float[B,t,2*3,h,w] -> query float[B,t,S,D], embeds float[B,t,S,D*(1+n)]: tokens, n features behind them."""
        seen = self._see(pixels)
        embeds = torch.cat([seen.pooler_output, *seen.deepstack_features], -1).view(*pixels.shape[:2], -1, self._wide)
        return VideoTokens(embeds[..., : self.embed_dim], embeds)

    @property
    def _wide(self) -> int:
        return self.embed_dim * (1 + len(self.hf.config.vision_config.deepstack_visual_indexes))

    def block(self, grid: tuple[int, int, int]) -> int:
        """Visual tokens that follow each other without text between them: a row's."""
        return grid[1] * grid[2] // self.merge**2

    def video_ids(self, frames: int, size: tuple[int, ...], seconds: Tensor | None) -> list[int]:
        """What stands for a video of so many rows among token ids: of each row its time, and VIDEO for each token."""
        assert seconds is not None, "time stamps need times"
        there = [VIDEO] * self.visual_tokens(1, size)
        start, end = self.tokenizer.convert_tokens_to_ids([START, END])
        # One token after another: a tokenizer takes what stands between special tokens by itself.
        stamps = self.tokenizer([f"<{time:.1f} seconds>" for time in seconds.tolist()], add_special_tokens=False)
        return [token for stamp in stamps.input_ids for token in (*stamp, start, *there, end)]

    def chat(
        self,
        question: str,
        history: tuple[tuple[str, str], ...] = (),
        answer: str | None = None,
        mask: Literal["answers", "official"] = "answers",
    ) -> _qwen_chat.Encoded:
        """Ids and labels of a conversation about one video; no answer leaves it open for generation."""
        return _qwen_chat.encode(
            self.tokenizer, _qwen_chat.turns(question, history, answer, _qwen_chat.TAG), mask, system=None
        )


def _unpack(lm: Any, args: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    """What stands behind the tokens goes to the LLM's layers; text has zeros there, which add nothing."""
    embeds = given.get("inputs_embeds")
    width = lm.config.hidden_size
    if embeds is None or embeds.shape[-1] == width:
        return None
    tokens, *deeper = embeds.split(width, -1)
    everywhere = torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
    deeper = [features.flatten(0, 1) for features in deeper]
    return args, {
        **given,
        "inputs_embeds": tokens.contiguous(),
        "visual_pos_masks": everywhere,
        "deepstack_visual_embeds": deeper,
    }


KIND = _qwen_vl.Kind(
    "qwen3_vl",
    "a Qwen3-VL checkpoint",
    Qwen3VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VL,
    PUBLISHED,
    Pixels(4096, 25_165_824, (0.5,) * 3, (0.5,) * 3),
)


def load(path: str, how: Settings = Settings(), weights: bool = True) -> QwenVL:
    """A base from a folder or a hub name. The embedding is never cut: no released patch expects it.

    Without `weights` it is a skeleton on the meta device; the published names then need no files at all. Raises
    UserError for settings it does not have, and naming missing, extra, misshapen tensors.
    """
    return _qwen_vl.load(KIND, path, how, weights)
