"""Qwen2.5-VL on the transformers class: any resolution, positions in time, height and width (M-RoPE) untouched."""

from __future__ import annotations

import numpy as np
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from pave.models.base import EncodedChat, History, Labels
from pave.models.bases import _loading, _qwen_chat, _qwen_vl

VIDEO_TAG = f"<|vision_start|>{_qwen_chat.TAG}<|vision_end|>"
TOWER = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "tokens_per_second": 2,
}


def _config(hidden: int, mlp: int, layers: int, heads: int, kv_heads: int, vocab: int, tied: bool) -> dict[str, object]:
    text = {
        **_loading.llm_shapes(hidden, mlp, layers, heads, kv_heads, vocab, tied),
        "max_position_embeddings": 128000,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": [16, 24, 24]},
    }
    return {"text_config": text, "vision_config": {**TOWER, "out_hidden_size": hidden}, "tie_word_embeddings": tied}


PUBLISHED = {
    "Qwen/Qwen2.5-VL-3B-Instruct": _config(2048, 11008, 36, 16, 2, 151936, True),
    "Qwen/Qwen2.5-VL-7B-Instruct": _config(3584, 18944, 28, 28, 4, 152064, False),
}


class Base(_qwen_vl.QwenVL):
    """Qwen2.5-VL: the rows of a video stand side by side, their time is in the positions."""

    model_type = "qwen2_5_vl"
    expected = "a Qwen2.5-VL checkpoint"
    model_class = Qwen2_5_VLForConditionalGeneration
    config_class = Qwen2_5_VLConfig
    published = PUBLISHED

    @staticmethod
    def sample_frames(n: int, fps: float) -> np.ndarray:
        """Choose int64[T] of n frames as the published processor: in pairs, from the first at equal steps."""
        count = max(int(_qwen_vl.published_frame_count(n, fps) // 2), 1) * 2
        return (np.arange(count) * (n / count)).astype(np.int64)

    def frame_size(self, frames: int, height: int, width: int) -> tuple[int, int]:
        """Height and width of each frame, however many there are."""
        limits = self.pixel_settings.min_pixels, self.pixel_settings.max_pixels
        return _qwen_vl.fit_size(height, width, self.patch_size * self.merge_size, *limits)

    def chat(
        self, question: str, history: History = (), answer: str | None = None, labels: Labels = "answers"
    ) -> EncodedChat:
        """Encode a conversation by Qwen2's template, with marks around the video."""
        return _qwen_chat.encode(self.tokenizer, _qwen_chat.turns(question, history, answer, VIDEO_TAG), labels)
