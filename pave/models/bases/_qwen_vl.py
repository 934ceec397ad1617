"""What Qwen2.5-VL and Qwen3-VL have in common: any resolution, merged tokens, positions in time, height and width.

The tower merges two frames and 2 x 2 patches into a token: T frames are t = T/2 rows, S tokens follow the picture's
size. Tower features before the merger are four times as many, so queries are the merged tokens.
"""

from __future__ import annotations

import inspect
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoTokenizer

from pave.models.bases import _loading
from pave.models.bases._loading import Settings
from pave.types import VIDEO, UserError, VideoTokens
from pave.utils import hub_download

NOT_QUANTIZED = ["visual", "lm_head"]
RATE, LEAST, MOST = 2.0, 4, 768
"""Frames a second, and of a video, that the processors take."""
WIDEST = 200
"""Longer sides for each shorter one are no picture."""


class Pixels(NamedTuple):
    """How a checkpoint's processor makes pixels; what is usual is Qwen2.5-VL's."""

    least: int = 128 * 28 * 28
    most: int = 768 * 28 * 28
    """Pixels of a frame; for Qwen3-VL of all frames together."""
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)


class QwenVL(nn.Module, ABC):
    """encode, layout, positions and lm; `hf` is the LLM alone. A base adds how large pictures are, and its chat."""

    lora_targets = r"model\.language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
    vision_tower: Any

    def __init__(self, hf: Any, tokenizer: Any, pixels: Pixels) -> None:
        super().__init__()
        self.vision_tower, hf.model.visual = hf.model.visual, None
        self.hf, self.tokenizer, self.pixels = hf, tokenizer, pixels
        self.query_dim = self.embed_dim = hf.config.get_text_config().hidden_size
        vision = hf.config.vision_config
        self.patch, self.merge, self.unit = vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size

    @property
    def lm(self) -> nn.Module:
        """The Qwen layers."""
        return self.hf.model.language_model

    @property
    def head(self) -> nn.Module:
        """hidden states -> vocabulary logits."""
        return self.hf.lm_head

    @abstractmethod
    def size(self, frames: int, high: int, wide: int) -> tuple[int, int]:
        """Height and width to which pictures are brought. UserError: a picture too long for its width."""

    def preprocess(self, frames: np.ndarray) -> Tensor:
        """uint8[T,H,W,3] -> float[t,2*3,h,w]: PIL bicubic to the nearest size of whole tokens.

        An odd T has its last frame twice. UserError: a picture too long for its width.
        """
        missing = -len(frames) % self.unit
        height, width = self.size(len(frames) + missing, *frames.shape[1:3])
        resized = [Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC) for frame in frames]
        resized += resized[-1:] * missing
        x = torch.from_numpy(np.stack([np.asarray(picture) for picture in resized])).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(x).view(-1, 1, 1) for x in (self.pixels.mean, self.pixels.std))
        return ((x - mean) / std).unflatten(0, (-1, self.unit)).flatten(1, 2)

    def encode(self, pixels: Tensor) -> VideoTokens:
        """float[B,t,2*3,h,w] -> query and embeds, both float[B,t,S,D]: what the merger gives, row by row."""
        merged = self._see(pixels).pooler_output
        embeds = merged.view(*pixels.shape[:2], -1, merged.shape[-1])
        return VideoTokens(embeds, embeds)

    def _see(self, pixels: Tensor) -> Any:
        """What the tower says of float[B,t,2*3,h,w], video after video, row by row."""
        batch, rows = pixels.shape[:2]
        (_, high, wide), (patch, merge) = self._grid(pixels.shape[1:]), (self.patch, self.merge)
        x = pixels.reshape(batch, rows, self.unit, -1, high // merge, merge, patch, wide // merge, merge, patch)
        # The processor's order: the patches of a token stand together, two frames of a patch too.
        x = x.permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9).flatten(0, 5).flatten(1)
        grid = torch.tensor([[rows, high, wide]] * batch, device=pixels.device)
        return self.vision_tower(x.to(self.vision_tower.dtype), grid_thw=grid)

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
            cut = -int(there.sum()) % self.block(grid)
            whole = torch.cat([tokens, tokens.new_full((cut,), VIDEO)])
            found[:, row, valid] = self._places(whole, grid, seconds[video] if seconds else None)[:, : len(tokens)]
        return found

    def block(self, grid: tuple[int, int, int]) -> int:
        """Visual tokens that follow each other without text between them."""
        return math.prod(grid) // self.merge**2

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


def _apart(seconds: Tensor | None) -> float:
    """Seconds from row to row. The model cuts positions to whole numbers, so noise must not tell 1.0 from .9999999."""
    if seconds is None or len(seconds) == 1:
        return 1.0
    return round(float(seconds[-1] - seconds[0]) / (len(seconds) - 1), 3)


def fit(height: float, width: float, unit: int, least: float, most: float) -> tuple[int, int]:
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


def processor(folder: Path, usual: Pixels = Pixels()) -> Pixels:
    """What a folder's processor files say of videos, and what is usual where they do not."""
    files = [folder / name for name in ("video_preprocessor_config.json", "preprocessor_config.json")]
    told: dict[str, Any] = next((json.loads(file.read_text()) for file in files if file.is_file()), {})
    size = told.get("size", {})
    named = {
        "least": told.get("min_pixels") or size.get("shortest_edge"),
        "most": told.get("max_pixels") or size.get("longest_edge"),
        "mean": told.get("image_mean"),
        "std": told.get("image_std"),
    }
    return usual._replace(**{name: value for name, value in named.items() if value})


def two_a_second(n: int, fps: float) -> float:
    """How many of n frames a Qwen processor takes: at least 4 and at most 768, if there are so many."""
    return min(max(n / fps * RATE, LEAST), MOST, n)


class Kind(NamedTuple):
    """One of the two models."""

    name: str
    """`model_type` in config.json; the plugin's own."""
    what: str
    model: Any
    """Its transformers class."""
    config: Any
    make: Callable[[Any, Any, Pixels], QwenVL]
    published: dict[str, Any]
    """Shapes by name, so that `pave show` needs no weights."""
    pixels: Pixels


def load(kind: Kind, path: str, how: Settings, weights: bool) -> QwenVL:
    """A base from a folder or a hub name. Raises UserError for settings that there are not, and for wrong tensors."""
    _loading.refuse(path, kind.name, how)
    if not weights and path in kind.published:
        return _skeleton(kind, kind.config(**kind.published[path]), kind.pixels)
    folder = hub_download.folder(path, kind.what, ["*.json", "*.safetensors", "*.txt"])
    found = _loading.config(folder, kind.what).get("model_type")
    if found != kind.name:
        raise UserError(f"{folder / 'config.json'}: model_type is {found}, expected {kind.name}")
    pixels = processor(folder, kind.pixels)
    if not weights:
        return _skeleton(kind, kind.config.from_pretrained(folder), pixels)
    hf = _loading.pretrained(kind.model, folder, kind.what, **how.given(NOT_QUANTIZED))
    return kind.make(hf, AutoTokenizer.from_pretrained(folder), pixels).eval()


def _skeleton(kind: Kind, config: Any, pixels: Pixels) -> QwenVL:
    """Shapes without weights."""
    with torch.device("meta"):
        return kind.make(kind.model(config), None, pixels)
