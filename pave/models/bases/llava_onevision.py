"""LLaVA-OneVision (SigLIP, two-layer projector, Qwen2) on the transformers classes; both checkpoint layouts."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoTokenizer,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
)

from pave.models import pooling
from pave.models.bases import _llava_onevision_layouts, _loading, _qwen_chat
from pave.models.bases._llava_onevision_layouts import newline_for
from pave.models.bases._loading import Newline, Pool, Settings
from pave.models.encoders import siglip
from pave.types import VideoTokens
from pave.utils import hub_download

WHAT = "a LLaVA-OneVision checkpoint"

LORA_TARGETS = r"model\.language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
"""All seven projections of every LLM layer, and nothing else (peft matches the full name)."""

NOT_QUANTIZED = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]
"""The patch reads the tower; in the others there is little to save."""


class LlavaOnevision(nn.Module):
    """encode, layout and lm, on the stable parts of the transformers class."""

    lora_targets = LORA_TARGETS

    def __init__(
        self,
        hf: LlavaOnevisionForConditionalGeneration,
        tokenizer: Any,
        newline: Newline = "grid",
        pool: Pool = "bilinear",
    ) -> None:
        super().__init__()
        self.hf, self.tokenizer, self.newline, self.pool = hf, tokenizer, newline, pool
        vision = hf.config.vision_config
        self.image_size: int = vision.image_size
        self.query_dim: int = vision.hidden_size
        self.embed_dim: int = hf.config.text_config.hidden_size
        side = vision.image_size // vision.patch_size
        self.side: int = math.ceil(side / 2) if pool == "bilinear" else side // 2
        """Tokens along one edge of a pooled frame."""

    @property
    def rests(self) -> str:
        """What no visual token comes from, and so never learns."""
        newline = r"|hf\.model\.image_newline" if self.newline == "no_token" else ""
        return r"hf\.model\.vision_tower\.(vision_model\.)?(post_layernorm|head)\..*" + newline

    @property
    def lm(self) -> nn.Module:
        """The Qwen2 layers; LoRA goes in here and nowhere else."""
        return self.hf.model.language_model

    @property
    def head(self) -> nn.Module:
        """hidden states -> vocabulary logits."""
        return self.hf.lm_head

    def preprocess(self, frames: np.ndarray) -> Tensor:
        """uint8[T,H,W,3] -> float[T,3,h,w] in [-1,1]: PIL bicubic to the tower's square, aspect ignored, no crop."""
        return siglip.normalise(torch.from_numpy(np.stack([siglip.prepare(f, self.image_size) for f in frames])))

    def encode(self, pixels: Tensor) -> VideoTokens:
        """float[B,T,3,h,w] -> pooled tower features (query) and pooled projected features (embeds)."""
        batch, frames = pixels.shape[:2]
        tower, projector = self.hf.model.vision_tower, self.hf.model.multi_modal_projector
        features = siglip.features(tower, pixels.flatten(0, 1))
        query, embeds = self._pool(features), self._pool(projector(features))
        return VideoTokens(query.unflatten(0, (batch, frames)), embeds.unflatten(0, (batch, frames)))

    def _pool(self, x: Tensor) -> Tensor:
        """float[N,h*h,C] -> float[N,S,C]; the released stride is always 2."""
        if self.pool == "bilinear":
            return pooling.halve(x)
        return pooling.on_grid(x, partial(F.avg_pool2d if self.pool == "average" else F.max_pool2d, kernel_size=2))

    def layout(self, embeds: Tensor) -> Tensor:
        """float[B,T,S,D] -> float[B,N,D]: the newline vector after each row, each frame, the video, or nowhere."""
        newline = self.hf.model.image_newline.to(embeds.dtype)
        if self.newline == "grid":
            rows = embeds.unflatten(2, (-1, self.side))
            return torch.cat([rows, newline.expand(*rows.shape[:3], 1, -1)], 3).flatten(1, 3)
        if self.newline == "frame":
            return torch.cat([embeds, newline.expand(*embeds.shape[:2], 1, -1)], 2).flatten(1, 2)
        flat = embeds.flatten(1, 2)
        return torch.cat([flat, newline.expand(len(flat), 1, -1)], 1) if self.newline == "one_token" else flat

    def visual_tokens(self, frames: int, size: tuple[int, ...] = ()) -> int:
        """N: how many rows `layout` gives for a video of so many frames, of any size."""
        extra = {"grid": frames * self.side, "frame": frames, "one_token": 1, "no_token": 0}[self.newline]
        return frames * self.side**2 + extra

    def chat(
        self,
        question: str,
        history: tuple[tuple[str, str], ...] = (),
        answer: str | None = None,
        mask: Literal["answers", "official"] = "answers",
    ) -> _qwen_chat.Encoded:
        """Ids and labels of a conversation about one video; no answer leaves it open for generation."""
        assert self.tokenizer is not None
        return _qwen_chat.encode(self.tokenizer, _qwen_chat.turns(question, history, answer), mask)


def load(
    path: str,
    how: Settings = Settings(),
    weights: bool = True,
    trim_vocabulary: bool = True,
) -> LlavaOnevision:
    """A base from an lmms-lab or HF folder, or a hub name. Raises UserError naming missing, extra, misshapen tensors.

    `trim_vocabulary` cuts the padded embedding to the tokenizer's length, as every released patch expects.
    Without `weights` it is a skeleton on the meta device; the published names then need no files at all.
    """
    if not weights and path in _llava_onevision_layouts.PUBLISHED:
        return _skeleton(
            _llava_onevision_layouts.config(*_llava_onevision_layouts.PUBLISHED[path]),
            how.newline or "grid",
            how.pool or "bilinear",
        )
    folder = hub_download.folder(path, WHAT, ["*.json", "*.safetensors", "*.txt"])
    raw = _loading.config(folder, WHAT)
    is_lmms = raw["model_type"] != "llava_onevision"
    config = (
        _llava_onevision_layouts.lmms_config(folder, raw, how.vision_heads)
        if is_lmms
        else LlavaOnevisionConfig.from_pretrained(folder)
    )
    pool = how.pool or raw.get("mm_spatial_pool_mode", "bilinear")
    newline = newline_for(how.newline or "grid", raw.get("mm_patch_merge_type", "spatial_unpad"))
    if not weights:
        return _skeleton(config, newline, pool)
    hf = _loading.pretrained(
        LlavaOnevisionForConditionalGeneration,
        folder,
        WHAT,
        config=config,
        key_mapping=_llava_onevision_layouts.TO_HF if is_lmms else None,
        **how.given(NOT_QUANTIZED),
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if trim_vocabulary and len(tokenizer) != hf.get_input_embeddings().num_embeddings:
        hf.resize_token_embeddings(len(tokenizer))
    return LlavaOnevision(hf, tokenizer, newline, pool)


def _skeleton(config: LlavaOnevisionConfig, newline: Newline, pool: Pool) -> LlavaOnevision:
    """Shapes without weights."""
    with torch.device("meta"):
        return LlavaOnevision(LlavaOnevisionForConditionalGeneration(config), None, newline, pool)
