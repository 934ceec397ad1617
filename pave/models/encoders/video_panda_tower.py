"""Video-Panda's spatio-temporal alignment block in plain torch: from pixels to tokens without a pretrained tower.

Attribute names make the state dict that of the published weights, without lmhra2, which the published class never runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from pave.models.encoders import _state_dict
from pave.models.encoders.languagebind_video import MEAN, STD
from pave.types import UserError

PREFIXES = ("model.video_tower.", "model.vision_tower.")
"""Of the tower's names in the published checkpoint: one tower for videos and pictures, which may be there twice."""
FRAMES, CHUNK = 8, 4
"""Frames a video, and of them those that see one another."""
PATCH, POOL, HEADS = 14, 2, 8
"""Pixels a side of a patch, patches a side of a token, heads of every attention; the same in all published weights."""
CELL = PATCH * POOL
"""Pixels a side of a token."""
EMPTY = 16
"""Patches a side that are kept of a frame of zeros."""
BACKGROUND = tuple(int(255 * x) for x in MEAN)


class Box(NamedTuple):
    """The patches of a frame that its picture covers, the last ones exclusive."""

    top: int
    bottom: int
    left: int
    right: int


class Mixer(nn.Module):
    """Neighbouring frames mixed at each place: float[N,W,F,h,w] -> the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = int(width / 1.5)
        self.pos_embed = nn.Sequential(
            nn.BatchNorm3d(width),
            nn.Conv3d(width, inner, 1),
            nn.Conv3d(inner, inner, (3, 1, 1), padding=(1, 0, 0), groups=inner),
            nn.Conv3d(inner, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.pos_embed(x)


class Mlp(nn.Module):
    """Two layers with quick GELU between; dropout as in training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c_fc(x)
        return self.c_proj(F.dropout(x * (1.702 * x).sigmoid(), 0.5, self.training))


class Overview(nn.Module):
    """A query float[N,1,W] and what it finds in all tokens float[N,L,W] of a chunk."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, HEADS, batch_first=True)
        self.ln_1, self.ln_2, self.ln_3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = Mlp(width)

    def forward(self, query: Tensor, tokens: Tensor) -> Tensor:
        seen = self.ln_3(tokens)
        x = query + self.attn(self.ln_1(query), seen, seen, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Gather(nn.Module):
    """A query float[N,1,W] and what it finds in its own tokens float[N,L,W]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width, bias=False))
        self.kv = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width, bias=False))
        self.proj = nn.Linear(width, width)

    def forward(self, query: Tensor, tokens: Tensor) -> Tensor:
        q = self.q(query).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        k, v = self.kv(tokens).unflatten(-1, (2, HEADS, -1)).permute(2, 0, 3, 1, 4)
        # Quirk: scaled by the whole width where attention usually takes that of one head.
        found = F.scaled_dot_product_attention(q, k, v, scale=query.shape[-1] ** -0.5)
        return query + self.proj(found.transpose(1, 2).flatten(2))


class Tower(nn.Module):
    """Canvases float[N,F,3,S,S], F frames that see one another, and where each is valid -> tokens of each frame.

    A frame of h x w valid cells has 1 + h(w+1) tokens: one for all of it, then its rows, each closed by a split token.
    """

    frames = CHUNK

    def __init__(self, width: int) -> None:
        super().__init__()
        self.class_embedding, self.split_embedding = (nn.Parameter(torch.randn(width) * 0.02) for _ in range(2))
        self.temporal_cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.balance = nn.Parameter(torch.zeros(width))
        self.patch_embedding = nn.Conv2d(3, width, PATCH, PATCH, bias=False)
        self.lmhra1 = Mixer(width)
        self.dpe = nn.Conv3d(width, width, 3, padding=1, groups=width)
        self.dec = Overview(width)
        self.proj = nn.Sequential(nn.LayerNorm(width), nn.Dropout(0.5), nn.Linear(width, width))
        self.local_attention, self.global_attention = Gather(width), Gather(width)
        for last in (self.lmhra1.pos_embed[-1], self.dec.attn.out_proj, self.dec.mlp.c_proj):
            for parameter in last.parameters():
                nn.init.zeros_(parameter)

    def forward(self, canvases: Tensor, boxes: Sequence[Box]) -> list[Tensor]:
        x, overview = self._mixed(canvases)
        tokens: dict[int, Tensor] = {}
        for area in dict.fromkeys(boxes):  # frames of one video differ where some are filler
            chosen = [i for i, found in enumerate(boxes) if found == area]
            valid = x[chosen][:, :, area.top : area.bottom, area.left : area.right]
            rows = self._frames(valid, None if overview is None else overview[chosen])
            tokens |= dict(zip(chosen, rows))
        return [tokens[i] for i in range(len(boxes))]

    def _mixed(self, pictures: Tensor) -> tuple[Tensor, Tensor | None]:
        """float[N,F,3,S,S] -> patches float[N*F,W,h,w] and, for each frame, the overview of its chunk float[N*F,W]."""
        units, frames = pictures.shape[:2]
        flat = self.patch_embedding(pictures.flatten(0, 1))
        if frames == 1:  # a picture has nothing to mix
            return flat, None
        start = flat.unflatten(0, (units, frames)).transpose(1, 2)
        x = start + self.lmhra1(start)
        x = x + self.dpe(x)
        overview = self.dec(self.temporal_cls_token.expand(units, -1, -1), x.flatten(2).transpose(1, 2))
        return (x + start).transpose(1, 2).flatten(0, 1), overview.repeat_interleave(frames, 0)[:, 0]

    def _frames(self, x: Tensor, overview: Tensor | None) -> Tensor:
        """The valid patches of frames, float[n,W,2h,2w] -> float[n,1+h(w+1),W]."""
        pooled = F.avg_pool2d(x, POOL)
        height, width = pooled.shape[2:]
        query = pooled.permute(0, 2, 3, 1).reshape(-1, 1, x.shape[1])
        cells = x.unflatten(2, (height, POOL)).unflatten(4, (width, POOL)).permute(0, 2, 4, 3, 5, 1)
        cells = cells.reshape(len(query), POOL**2, -1)
        local = self.local_attention(query, cells).view(len(x), height, width, -1)
        first = self.global_attention(self.class_embedding.expand(len(x), 1, -1), local.flatten(1, 2))[:, 0]
        if overview is not None:
            share = self.balance.sigmoid()
            first = self.proj((1 - share) * overview + share * first)
        rows = torch.cat([local, self.split_embedding.expand(len(x), height, 1, -1)], 2).flatten(1, 2)
        return torch.cat([first[:, None], rows], 1)


def fit(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width of a picture on a square canvas: its longest side fills it, all are whole cells."""
    high, wide = (-(-size * side // (max(height, width) * CELL)) * CELL for side in (height, width))
    return high, wide


def box(height: int, width: int, size: int) -> Box:
    """Where a picture of this many pixels, whole cells, lies on its canvas."""
    top, left = ((size - side) // 2 // CELL * POOL for side in (height, width))
    return Box(top, top + height // PATCH, left, left + width // PATCH)


def nothing(size: int) -> Box:
    """What is kept of a frame of zeros; the published code completes videos of less than 8 frames by such frames."""
    edge = min(EMPTY, size // PATCH)
    return Box(0, edge, 0, edge)


def count(area: Box) -> int:
    """How many tokens a frame has."""
    return 1 + (area.bottom - area.top) // POOL * ((area.right - area.left) // POOL + 1)


def prepare(frames: np.ndarray, size: int) -> Tensor:
    """uint8[T,H,W,3] -> float[T,3,h,w], normalised: PIL bicubic, aspect kept up to whole cells."""
    height, width = fit(frames.shape[1], frames.shape[2], size)
    resized = [Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC) for frame in frames]
    x = torch.from_numpy(np.stack([np.asarray(picture) for picture in resized])).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (MEAN, STD))
    return (x - mean) / std


def spread(pictures: Tensor, size: int) -> Tensor:
    """What `prepare` made, float[...,3,h,w] -> canvases float[...,3,size,size], the mean colour around."""
    height, width = pictures.shape[-2:]
    area = box(height, width, size)
    colour = [(level / 255 - mean) / std for level, mean, std in zip(BACKGROUND, MEAN, STD)]
    canvas = pictures.new_tensor(colour).view(3, 1, 1).repeat(*pictures.shape[:-3], 1, size, size)
    top, left = area.top * PATCH, area.left * PATCH
    canvas[..., top : top + height, left : left + width] = pictures
    return canvas


def choose(n: int, fps: float) -> np.ndarray:
    """int64, at most 8 of n frames: of one a second 8 evenly spaced, or where there are fewer, at even steps."""
    seconds = np.arange(0, n, max(1, round(fps)))
    if len(seconds) >= FRAMES:
        return seconds[np.linspace(0, len(seconds) - 1, FRAMES).astype(np.int64)]
    least = min(n, FRAMES)
    # The published code divides by zero for a video of one frame.
    return np.arange(least) * ((n - 1) // max(1, least - 1))


def load(path: Path) -> Tower:
    """A tower in eval mode and float32 from Video-Panda's checkpoint, a folder or one of its files.

    UserError: unreadable, another model, tensors missing, left over or of the wrong shape.
    """
    state = _state_dict.select(path, _own_name)
    first = state.get("class_embedding")
    if first is None or first.ndim != 1 or len(first) % HEADS:
        raise UserError(
            f"{path}: holds no Video-Panda tower: no {PREFIXES[0]}class_embedding in it; give its checkpoint"
        )
    with torch.device("meta"):
        tower = Tower(len(first))
    _state_dict.check(path, "a Video-Panda tower", state, tower.state_dict())
    tower.load_state_dict(state, assign=True)
    return tower.eval()


def _own_name(name: str) -> str | None:
    own = next((name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)), None)
    return None if own is None or own.startswith("lmhra2.") else own
