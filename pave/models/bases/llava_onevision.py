"""LLaVA-OneVision (SigLIP, two-layer projector, Qwen2) on the transformers classes; both checkpoint layouts."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoTokenizer,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerBase,
)

from pave.models import base, pooling
from pave.models.base import EncodedChat, History, Labels, LoadSettings, Newline, Pool
from pave.models.bases import _llava_onevision_layouts, _loading, _qwen_chat
from pave.models.encoders import siglip
from pave.types import VideoTokens
from pave.utils import hub_download
from pave.utils.json_files import read_json

if TYPE_CHECKING:
    from typing_extensions import Self

EXPECTED = "a LLaVA-OneVision checkpoint"
UNQUANTIZED = ("model.vision_tower", "model.multi_modal_projector", "lm_head")
"""The patch reads the tower; in the others there is little to save."""


class Base(base.Base):
    """LLaVA-OneVision; the official patches of PAVE were trained on it."""

    lora_targets = rf"model\.language_model\.{base.LLM_PROJECTIONS}"

    def __init__(
        self,
        hf: LlavaOnevisionForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase | None,
        newline: Newline = "grid",
        pool: Pool = "bilinear",
    ) -> None:
        vision = hf.config.vision_config
        super().__init__(tokenizer, vision.hidden_size, hf.config.text_config.hidden_size)

        self.hf = hf
        self.newline = newline
        self.pool = pool
        self.image_size: int = vision.image_size
        edge = vision.image_size // vision.patch_size
        self.pooled_edge: int = math.ceil(edge / 2) if pool == "bilinear" else edge // 2
        """Tokens along one edge of a pooled frame."""

    @property
    def untrainable(self) -> str:
        """What `encode` never reads; the newline vector only where there are newlines."""
        newline = r"|hf\.model\.image_newline" if self.newline == "no_token" else ""
        return r"hf\.model\.vision_tower\.(vision_model\.)?(post_layernorm|head)\..*" + newline

    def preprocess(self, frames: np.ndarray) -> Tensor:
        """Make float[T,3,h,w] in [-1,1] of uint8[T,H,W,3]: PIL bicubic to the tower's square, no crop."""
        squares = np.stack([siglip.prepare(frame, self.image_size) for frame in frames])
        return siglip.normalize(torch.from_numpy(squares))

    def encode(self, pixels: Tensor, prompt_ids: Tensor | None = None) -> VideoTokens:
        """Encode float[B,T,3,h,w] into pooled features of the tower (query) and of the projector (embeds)."""
        tower, projector = self.hf.model.vision_tower, self.hf.model.multi_modal_projector
        features = siglip.encode_pixels(tower, pixels.flatten(0, 1))
        query = self._pool(features).unflatten(0, pixels.shape[:2])
        embeds = self._pool(projector(features)).unflatten(0, pixels.shape[:2])
        return VideoTokens(query, embeds)

    def _pool(self, x: Tensor) -> Tensor:
        """Pool float[N,h*h,C] to float[N,S,C]; the official stride is always 2."""
        if self.pool == "bilinear":
            return pooling.halve(x)
        return pooling.on_grid(x, partial(F.avg_pool2d if self.pool == "average" else F.max_pool2d, kernel_size=2))

    def arrange_tokens(self, embeds: Tensor) -> Tensor:
        """Put a newline vector after each row, after each frame, after the video, or nowhere."""
        newline = self.hf.model.image_newline.to(embeds.dtype)
        if self.newline == "grid":
            rows = embeds.unflatten(2, (-1, self.pooled_edge))
            return torch.cat([rows, newline.expand(*rows.shape[:3], 1, -1)], 3).flatten(1, 3)
        if self.newline == "frame":
            return torch.cat([embeds, newline.expand(*embeds.shape[:2], 1, -1)], 2).flatten(1, 2)

        tokens = embeds.flatten(1, 2)
        if self.newline == "one_token":
            return torch.cat([tokens, newline.expand(len(tokens), 1, -1)], 1)
        return tokens

    def num_visual_tokens(self, frames: int, size: tuple[int, ...] = ()) -> int:
        """N for so many frames, of any size."""
        newlines = {"grid": frames * self.pooled_edge, "frame": frames, "one_token": 1, "no_token": 0}[self.newline]
        return frames * self.pooled_edge**2 + newlines

    def chat(
        self, question: str, history: History = (), answer: str | None = None, labels: Labels = "answers"
    ) -> EncodedChat:
        """Encode a conversation by Qwen2's template."""
        return _qwen_chat.encode(self.tokenizer, _qwen_chat.turns(question, history, answer), labels)

    @classmethod
    def load(
        cls,
        path: str,
        settings: LoadSettings = LoadSettings(),
        weights: bool = True,
        trim_vocabulary: bool = True,
    ) -> Self:
        """Load a base from an lmms-lab or transformers folder, or a hub name.

        `trim_vocabulary` cuts the padded embedding to the tokenizer's length, as every official patch expects.
        """
        if not weights and path in _llava_onevision_layouts.PUBLISHED:
            published_config = _llava_onevision_layouts.build_config(*_llava_onevision_layouts.PUBLISHED[path])
            return cls._skeleton(published_config, settings.newline or "grid", settings.pool or "bilinear")

        folder = hub_download.find_folder(path, EXPECTED, ["*.json", "*.safetensors", "*.txt"])
        config_json = read_json(folder / "config.json", EXPECTED, ["model_type"])
        is_lmms = config_json["model_type"] != "llava_onevision"
        if is_lmms:
            config = _llava_onevision_layouts.read_lmms_config(folder, config_json, settings.vision_heads)
        else:
            config = LlavaOnevisionConfig.from_pretrained(folder)
        pool = settings.pool or config_json.get("mm_spatial_pool_mode", "bilinear")
        merge_type = config_json.get("mm_patch_merge_type", "spatial_unpad")
        newline = _llava_onevision_layouts.newline_for(settings.newline or "grid", merge_type)
        if not weights:
            return cls._skeleton(config, newline, pool)

        hf = _loading.load_pretrained(
            LlavaOnevisionForConditionalGeneration,
            folder,
            EXPECTED,
            config=config,
            key_mapping=_llava_onevision_layouts.TO_HF if is_lmms else None,
            **_loading.pretrained_arguments(settings, UNQUANTIZED),
        )
        tokenizer = AutoTokenizer.from_pretrained(folder)
        if trim_vocabulary and len(tokenizer) != hf.get_input_embeddings().num_embeddings:
            hf.resize_token_embeddings(len(tokenizer))
        return cls(hf, tokenizer, newline, pool).eval()

    @classmethod
    def _skeleton(cls, config: LlavaOnevisionConfig, newline: Newline, pool: Pool) -> Self:
        with torch.device("meta"):
            return cls(LlavaOnevisionForConditionalGeneration(config), None, newline, pool)
