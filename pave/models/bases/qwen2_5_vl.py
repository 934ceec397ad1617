"""Qwen2.5-VL on the transformers class: any resolution, positions in time, height and width (M-RoPE) untouched."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from pave.models.bases import _qwen_chat, _qwen_vl
from pave.models.bases._loading import Settings
from pave.models.bases._qwen_vl import Pixels, QwenVL

TAG = f"<|vision_start|>{_qwen_chat.TAG}<|vision_end|>"
TOWER = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "tokens_per_second": 2,
}


def _published(hidden: int, mlp: int, layers: int, heads: int, kv_heads: int, vocab: int, tied: bool) -> dict[str, Any]:
    text = {
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 128000,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": [16, 24, 24]},
    }
    return {"text_config": text, "vision_config": {**TOWER, "out_hidden_size": hidden}, "tie_word_embeddings": tied}


PUBLISHED = {
    "Qwen/Qwen2.5-VL-3B-Instruct": _published(2048, 11008, 36, 16, 2, 151936, True),
    "Qwen/Qwen2.5-VL-7B-Instruct": _published(3584, 18944, 28, 28, 4, 152064, False),
}


def choose(n: int, fps: float) -> np.ndarray:
    """int64[T], the frames that the published processor takes of n: in pairs, from the first at equal steps."""
    count = max(int(_qwen_vl.two_a_second(n, fps) // 2), 1) * 2
    return (np.arange(count) * (n / count)).astype(np.int64)


class Qwen25VL(QwenVL):
    """The rows of a video stand side by side, their time is in the positions."""

    choose = staticmethod(choose)

    def size(self, frames: int, high: int, wide: int) -> tuple[int, int]:
        """Height and width to which pictures are brought. UserError: a picture too long for its width."""
        return _qwen_vl.fit(high, wide, self.patch * self.merge, self.pixels.least, self.pixels.most)

    def chat(
        self,
        question: str,
        history: tuple[tuple[str, str], ...] = (),
        answer: str | None = None,
        mask: Literal["answers", "official"] = "answers",
    ) -> _qwen_chat.Encoded:
        """Ids and labels of a conversation about one video; no answer leaves it open for generation."""
        return _qwen_chat.encode(self.tokenizer, _qwen_chat.turns(question, history, answer, TAG), mask)


KIND = _qwen_vl.Kind(
    "qwen2_5_vl",
    "a Qwen2.5-VL checkpoint",
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen25VL,
    PUBLISHED,
    Pixels(),
)


def load(path: str, how: Settings = Settings(), weights: bool = True) -> QwenVL:
    """A base from a folder or a hub name. The embedding is never cut: no released patch expects it.

    Without `weights` it is a skeleton on the meta device; the published names then need no files at all. Raises
    UserError for settings it does not have, and naming missing, extra, misshapen tensors.
    """
    return _qwen_vl.load(KIND, path, how, weights)
