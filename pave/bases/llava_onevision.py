"""LLaVA-OneVision (SigLIP, two-layer projector, Qwen2) on the transformers classes; both checkpoint layouts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from huggingface_hub import snapshot_download
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoTokenizer,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerBase,
    Qwen2Config,
    SiglipVisionConfig,
)

from pave.bases import _qwen
from pave.types import UserError, VideoTokens

Newline = Literal["grid", "frame", "one_token", "no_token"]
Pool = Literal["bilinear", "average", "max"]

LORA_TARGETS = r"model\.language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
"""All seven projections of every LLM layer, and nothing else (peft matches the full name)."""

_TO_HF = {
    r"^model\.vision_tower\.vision_tower\.vision_model\.": "model.vision_tower.",
    r"^model\.mm_projector\.0\.": "model.multi_modal_projector.linear_1.",
    r"^model\.mm_projector\.2\.": "model.multi_modal_projector.linear_2.",
    r"^model\.(layers|embed_tokens|norm)\.": r"model.language_model.\1.",
}
_SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 26, "num_attention_heads": 16}
PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    f"lmms-lab/llava-onevision-qwen2-{size}-ov": (
        {
            "hidden_size": hidden,
            "intermediate_size": mlp,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "vocab_size": vocab,
            "tie_word_embeddings": tied,
        },
        {**_SO400M, "image_size": 384, "patch_size": 14},
    )
    for size, hidden, mlp, layers, heads, kv_heads, vocab, tied in (
        ("0.5b", 896, 4864, 24, 14, 2, 151936, True),
        ("7b", 3584, 18944, 28, 28, 4, 152064, False),
    )
}
"""Shapes of the published bases, so that `pave show` needs no weights."""


class LlavaOnevision(nn.Module):
    """encode, layout and lm, on the stable parts of the transformers class."""

    lora_targets = LORA_TARGETS

    def __init__(
        self,
        hf: LlavaOnevisionForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase | None,
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
    def lm(self) -> nn.Module:
        """The Qwen2 layers; LoRA goes in here and nowhere else."""
        return self.hf.model.language_model

    @property
    def head(self) -> nn.Module:
        """hidden states -> vocabulary logits."""
        return self.hf.lm_head

    def preprocess(self, frames: np.ndarray) -> Tensor:
        """uint8[T,H,W,3] -> float[T,3,h,w] in [-1,1]: PIL bicubic to the tower's square, aspect ignored, no crop."""
        size = (self.image_size, self.image_size)
        resized = [np.asarray(Image.fromarray(f).resize(size, Image.Resampling.BICUBIC)) for f in frames]
        return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float().div(255).sub(0.5).div(0.5)

    def encode(self, pixels: Tensor) -> VideoTokens:
        """float[B,T,3,h,w] -> pooled tower features (query) and pooled projected features (embeds)."""
        batch, frames = pixels.shape[:2]
        tower, projector = self.hf.model.vision_tower, self.hf.model.multi_modal_projector
        seen = tower(pixels.flatten(0, 1).to(tower.dtype), output_hidden_states=True)
        # The last hidden state before the post layer norm: layer 26 of SigLIP's 27.
        features = seen.hidden_states[-1]
        query, embeds = self._pool(features), self._pool(projector(features))
        return VideoTokens(query.unflatten(0, (batch, frames)), embeds.unflatten(0, (batch, frames)))

    def _pool(self, x: Tensor) -> Tensor:
        """float[N,h*h,C] -> float[N,S,C]; the released stride is always 2."""
        edge = round(x.shape[1] ** 0.5)
        grid = x.transpose(1, 2).unflatten(2, (edge, edge))
        if self.pool == "bilinear":
            grid = F.interpolate(grid, size=(self.side, self.side), mode="bilinear")
        else:
            grid = F.avg_pool2d(grid, 2) if self.pool == "average" else F.max_pool2d(grid, 2)
        return grid.flatten(2).transpose(1, 2)

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

    def visual_tokens(self, frames: int) -> int:
        """N: how many rows `layout` gives for a video of so many frames."""
        extra = {"grid": frames * self.side, "frame": frames, "one_token": 1, "no_token": 0}[self.newline]
        return frames * self.side**2 + extra

    def chat(
        self,
        question: str,
        history: tuple[tuple[str, str], ...] = (),
        answer: str | None = None,
        mask: Literal["answers", "release"] = "answers",
    ) -> _qwen.Encoded:
        """Ids and labels of a conversation about one video; no answer leaves it open for generation."""
        assert self.tokenizer is not None
        return _qwen.encode(self.tokenizer, _qwen.turns(question, history, answer), mask)


def load(
    path: str,
    *,
    newline: Newline = "grid",
    pool: Pool | None = None,
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
    vision_heads: int | None = None,
    trim_vocabulary: bool = True,
    weights: bool = True,
) -> LlavaOnevision:
    """A base from an lmms-lab or HF folder, or a hub name. Raises UserError naming missing, extra, misshapen tensors.

    `trim_vocabulary` cuts the padded embedding to the tokenizer's length, as every released patch expects.
    Without `weights` it is a skeleton on the meta device; the published names then need no files at all.
    """
    if not weights and path in PUBLISHED:
        return _skeleton(_config(*PUBLISHED[path]), newline, pool or "bilinear")
    folder = _folder(path)
    raw = json.loads((folder / "config.json").read_text())
    is_lmms = raw["model_type"] != "llava_onevision"
    config = _lmms_config(folder, raw, vision_heads) if is_lmms else LlavaOnevisionConfig.from_pretrained(folder)
    pool = pool or raw.get("mm_spatial_pool_mode", "bilinear")
    if not weights:
        return _skeleton(config, newline, pool)
    hf, info = LlavaOnevisionForConditionalGeneration.from_pretrained(
        folder,
        config=config,
        dtype=dtype,
        attn_implementation=attention,
        key_mapping=_TO_HF if is_lmms else None,
        output_loading_info=True,
    )
    wrong = {kind: sorted(map(str, names))[:3] for kind, names in info.items() if names}
    if wrong:
        raise UserError(f"{folder}: not a complete LLaVA-OneVision checkpoint: {wrong}")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if trim_vocabulary and len(tokenizer) != hf.get_input_embeddings().num_embeddings:
        hf.resize_token_embeddings(len(tokenizer))
    return LlavaOnevision(hf.eval(), tokenizer, newline, pool)


def _folder(path: str) -> Path:
    """A local folder, or the hub's copy of a name like org/name."""
    if Path(path).is_dir():
        return Path(path)
    if path.count("/") != 1 or path.startswith((".", "/")):
        raise UserError(f"{path}: no such folder; expected a LLaVA-OneVision checkpoint or a hub name like org/name")
    return Path(snapshot_download(path, allow_patterns=["*.json", "*.safetensors", "*.txt"]))


def _skeleton(config: LlavaOnevisionConfig, newline: Newline, pool: Pool) -> LlavaOnevision:
    """Shapes without weights."""
    with torch.device("meta"):
        return LlavaOnevision(LlavaOnevisionForConditionalGeneration(config), None, newline, pool)


def _config(text: dict[str, Any], vision: dict[str, Any]) -> LlavaOnevisionConfig:
    """The transformers config of plain shapes; what is not named is the same for all published bases."""
    rope_theta = text.get("rope_theta", 1_000_000.0)
    fixed = {"rms_norm_eps": 1e-6, "max_position_embeddings": 32768}
    shapes = {**fixed, **{k: v for k, v in text.items() if k != "rope_theta"}}
    return LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**vision, vision_use_head=False),
        text_config=Qwen2Config(**shapes, rope_parameters={"rope_type": "default", "rope_theta": rope_theta}),
        tie_word_embeddings=text["tie_word_embeddings"],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )


_TEXT_KEYS = [
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "rms_norm_eps",
    "max_position_embeddings",
    "tie_word_embeddings",
    "rope_theta",
    "bos_token_id",
    "eos_token_id",
]


def _lmms_config(folder: Path, raw: dict[str, Any], vision_heads: int | None) -> LlavaOnevisionConfig:
    """The transformers config of an lmms-lab folder; the tower's shapes come from its tensors."""
    return _config({k: raw[k] for k in _TEXT_KEYS if k in raw}, _tower_shapes(folder, raw, vision_heads))


def _tower_shapes(folder: Path, raw: dict[str, Any], heads: int | None) -> dict[str, Any]:
    """SigLIP's shapes: from `vision_config` where a folder has one (ours do), else from the weights."""
    if "vision_config" in raw:
        return raw["vision_config"]
    prefix, shapes = "model.vision_tower.vision_tower.vision_model.", {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            shapes |= {k: tensors.get_slice(k).get_shape() for k in tensors.keys() if k.startswith(prefix)}
    if not shapes:
        raise UserError(f"{folder}: no vision tower among its tensors; expected names that begin with '{prefix}'")
    width, _, patch, _ = shapes[f"{prefix}embeddings.patch_embedding.weight"]
    edge = round(shapes[f"{prefix}embeddings.position_embedding.weight"][0] ** 0.5)
    if heads is None and width != _SO400M["hidden_size"]:
        raise UserError(f"{folder}: the number of heads of a {width}-wide tower is not in its files; pass vision_heads")
    return {
        "hidden_size": width,
        "intermediate_size": shapes[f"{prefix}encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": len({k.split(".")[6] for k in shapes if ".encoder.layers." in k}),
        "num_attention_heads": heads or _SO400M["num_attention_heads"],
        # so400m/14-384 covers 27 * 14 of its 384 pixels; the rest of the edge is cut off by the convolution.
        "image_size": 384 if (edge, patch) == (27, 14) else edge * patch,
        "patch_size": patch,
    }
