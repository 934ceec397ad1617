"""Qwen2.5-VL on the transformers class: any resolution, positions in time, height and width (M-RoPE) untouched.

The tower merges two frames and 2 x 2 patches into a token: T frames are t = T/2 rows, S tokens follow the picture's
size. Tower features before the merger are four times as many and in another order, so queries are the merged tokens.
"""

from __future__ import annotations

import inspect
import json
import math
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoTokenizer, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from pave.bases import _quantize, _qwen, _read
from pave.bases._quantize import Quantize
from pave.io import hub
from pave.types import VIDEO, UserError, VideoTokens

WHAT = "a Qwen2.5-VL checkpoint"
TAG = f"<|vision_start|>{_qwen.TAG}<|vision_end|>"
NOT_QUANTIZED = ["visual", "lm_head"]
WIDEST = 200
"""Longer sides for each shorter one are no picture."""
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
"""Shapes, so that `pave show` needs no weights."""


class Pixels(NamedTuple):
    """How a checkpoint's processor makes pixels."""

    least: int = 128 * 28 * 28
    most: int = 768 * 28 * 28
    """Pixels of a frame."""
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)


class Qwen25VL(nn.Module):
    """encode, layout, positions and lm; `hf` is the LLM alone."""

    lora_targets = r"model\.language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
    vision_tower: Any

    def __init__(self, hf: Qwen2_5_VLForConditionalGeneration, tokenizer: Any, pixels: Pixels) -> None:
        super().__init__()
        self.vision_tower, hf.model.visual = hf.model.visual, None
        self.hf, self.tokenizer, self.pixels = hf, tokenizer, pixels
        self.query_dim = self.embed_dim = hf.config.get_text_config().hidden_size
        vision = hf.config.vision_config
        self.patch, self.merge, self.together = vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size

    @property
    def lm(self) -> nn.Module:
        """The Qwen2 layers."""
        return self.hf.model.language_model

    @property
    def head(self) -> nn.Module:
        """hidden states -> vocabulary logits."""
        return self.hf.lm_head

    def preprocess(self, frames: np.ndarray) -> Tensor:
        """uint8[T,H,W,3] -> float[t,2*3,h,w]: PIL bicubic to the nearest size of whole tokens.

        An odd T has its last frame twice. UserError: a picture too long for its width.
        """
        high, wide = frames.shape[1:3]
        height, width = fit(high, wide, self.patch * self.merge, self.pixels.least, self.pixels.most)
        resized = [Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC) for frame in frames]
        resized += resized[-1:] * (-len(resized) % self.together)
        x = torch.from_numpy(np.stack([np.asarray(picture) for picture in resized])).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(x).view(-1, 1, 1) for x in (self.pixels.mean, self.pixels.std))
        return ((x - mean) / std).unflatten(0, (-1, self.together)).flatten(1, 2)

    def encode(self, pixels: Tensor) -> VideoTokens:
        """float[B,t,2*3,h,w] -> query and embeds, both float[B,t,S,D]: what the merger gives, row by row."""
        batch, rows = pixels.shape[:2]
        (_, high, wide), (patch, merge) = self._grid(pixels.shape[1:]), (self.patch, self.merge)
        x = pixels.reshape(batch, rows, self.together, -1, high // merge, merge, patch, wide // merge, merge, patch)
        # The processor's order: the patches of a token stand together, two frames of a patch too.
        x = x.permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9).flatten(0, 5).flatten(1)
        grid = torch.tensor([[rows, high, wide]] * batch, device=pixels.device)
        merged = self.vision_tower(x.to(self.vision_tower.dtype), grid_thw=grid).pooler_output
        embeds = merged.view(batch, rows, -1, merged.shape[-1])
        return VideoTokens(embeds, embeds)

    def _grid(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Rows, and patches down and across, of preprocessed pixels."""
        return shape[0], shape[-2] // self.patch, shape[-1] // self.patch

    def layout(self, embeds: Tensor) -> Tensor:
        """float[B,t,S,D] -> float[B,t*S,D]; no newlines."""
        return embeds.flatten(1, 2)

    def visual_tokens(self, frames: int, size: tuple[int, ...]) -> int:
        """N of a video of so many rows with pictures of this height and width, as preprocessed."""
        return frames * math.prod(size) // (self.patch * self.merge) ** 2

    def positions(self, ids: Tensor, mask: Tensor, videos: list[Tensor], seconds: list[Tensor] | None) -> Tensor:
        """int[B,L] with VIDEO, bool[B,L], each video's pixels and seconds -> int[3,B,L]: time, height and width.

        As the model's own `get_rope_index`, also where a row's end was cut.
        """
        found = ids.new_zeros(3, *ids.shape)
        left = iter(range(len(videos)))
        for row, (tokens, valid) in enumerate(zip(ids, mask.bool())):
            tokens = tokens[valid]
            there = tokens == VIDEO
            if not there.any():
                found[:, row, valid] = torch.arange(len(tokens), device=ids.device)
                continue
            video = next(left)
            assert videos[video].ndim == 4, "stored video tokens do not tell the size of the pictures"
            grid = self._grid(videos[video].shape)
            cut = math.prod(grid) // self.merge**2 - int(there.sum())
            whole = torch.cat([tokens, tokens.new_full((cut,), VIDEO)])
            found[:, row, valid] = self._places(whole, grid, seconds[video] if seconds else None)[:, : len(tokens)]
        return found

    def _places(self, ids: Tensor, grid: tuple[int, int, int], seconds: Tensor | None) -> Tensor:
        """int[L] of one video -> int[3,L]"""
        there = ids == VIDEO
        given = {
            "input_ids": ids.masked_fill(there, self.hf.config.video_token_id)[None],
            "video_grid_thw": torch.tensor([grid], device=ids.device),
            "second_per_grid_ts": [_apart(seconds)],
            "mm_token_type_ids": 2 * there.int()[None],  # 2 is video
        }
        find = self.hf.model.get_rope_index
        known = inspect.signature(find).parameters
        return find(**{name: value for name, value in given.items() if name in known})[0][:, 0]

    def chat(
        self,
        question: str,
        history: tuple[tuple[str, str], ...] = (),
        answer: str | None = None,
        mask: Literal["answers", "release"] = "answers",
    ) -> _qwen.Encoded:
        """Ids and labels of a conversation about one video; no answer leaves it open for generation."""
        return _qwen.encode(self.tokenizer, _qwen.turns(question, history, answer, TAG), mask)


def _apart(seconds: Tensor | None) -> float:
    """Seconds from row to row. The model cuts positions to whole numbers, so noise must not tell 1.0 from .9999999."""
    if seconds is None or len(seconds) == 1:
        return 1.0
    return round(float(seconds[-1] - seconds[0]) / (len(seconds) - 1), 3)


def fit(height: int, width: int, unit: int, least: int, most: int) -> tuple[int, int]:
    """Height and width of whole units nearest to a picture's, with `least` to `most` pixels. UserError: no picture."""
    if max(height, width) > WIDEST * min(height, width):
        raise UserError(f"a video of {width} x {height} pixels; expected at most {WIDEST} times as long as wide")
    high, wide = (round(x / unit) * unit for x in (height, width))
    if high * wide > most:
        shrink = math.sqrt(height * width / most)
        return max(unit, math.floor(height / shrink / unit) * unit), max(unit, math.floor(width / shrink / unit) * unit)
    if high * wide < least:
        grow = math.sqrt(least / (height * width))
        return math.ceil(height * grow / unit) * unit, math.ceil(width * grow / unit) * unit
    return high, wide


def processor(folder: Path) -> Pixels:
    """What a folder's processor files say of videos; the defaults of transformers where they do not."""
    files = [folder / name for name in ("video_preprocessor_config.json", "preprocessor_config.json")]
    told: dict[str, Any] = next((json.loads(file.read_text()) for file in files if file.is_file()), {})
    size = told.get("size", {})
    named = {
        "least": told.get("min_pixels") or size.get("shortest_edge"),
        "most": told.get("max_pixels") or size.get("longest_edge"),
        "mean": told.get("image_mean"),
        "std": told.get("image_std"),
    }
    return Pixels(**{name: value for name, value in named.items() if value})


def load(
    path: str,
    *,
    newline: str = "no_token",
    pool: str | None = None,
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
    vision_heads: int | None = None,
    trim_vocabulary: bool = True,
    quantize: Quantize = "none",
    weights: bool = True,
) -> Qwen25VL:
    """A base from a folder or a hub name. The embedding is never cut: no released patch expects it.

    Without `weights` it is a skeleton on the meta device; the published names then need no files at all. Raises
    UserError for settings it does not have, and naming missing, extra, misshapen tensors.
    """
    _read.refuse(path, "qwen2_5_vl", newline, pool=pool, vision_heads=vision_heads)
    if not weights and path in PUBLISHED:
        return _skeleton(Qwen2_5_VLConfig(**PUBLISHED[path]), Pixels())
    folder = hub.folder(path, WHAT, ["*.json", "*.safetensors", "*.txt"])
    found = _read.config(folder, WHAT).get("model_type")
    if found != "qwen2_5_vl":
        raise UserError(f"{folder / 'config.json'}: model_type is {found}, expected qwen2_5_vl")
    if not weights:
        return _skeleton(Qwen2_5_VLConfig.from_pretrained(folder), processor(folder))
    hf = _read.pretrained(
        Qwen2_5_VLForConditionalGeneration,
        folder,
        WHAT,
        dtype=dtype,
        attn_implementation=attention,
        quantization_config=_quantize.settings(quantize, dtype, NOT_QUANTIZED),
    )
    return Qwen25VL(hf, AutoTokenizer.from_pretrained(folder), processor(folder)).eval()


def _skeleton(config: Qwen2_5_VLConfig, pixels: Pixels) -> Qwen25VL:
    """Shapes without weights."""
    with torch.device("meta"):
        return Qwen25VL(Qwen2_5_VLForConditionalGeneration(config), None, pixels)
