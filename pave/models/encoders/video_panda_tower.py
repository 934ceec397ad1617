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
from pave.models.encoders._clip_layers import CLIP_MEAN, CLIP_STD, multi_head_attention, quick_gelu
from pave.types import UserError

PREFIXES = ("model.video_tower.", "model.vision_tower.")
"""Of the tower's names in the published checkpoint: one tower for videos and images, which may be there twice."""
VIDEO_FRAMES, CHUNK_FRAMES = 8, 4
"""Frames a video, and of them those that see one another."""
PATCH, POOL, HEADS = 14, 2, 8
"""Pixels a side of a patch, patches a side of a token, heads of every attention; the same in all published weights."""
TOKEN_PIXELS = PATCH * POOL
"""Pixels a side of a token."""
EMPTY_PATCHES = 16
"""Patches a side that are kept of a frame of zeros."""
BACKGROUND = tuple(int(255 * x) for x in CLIP_MEAN)


class Box(NamedTuple):
    """The patches of a canvas that its image covers, the last ones exclusive."""

    top: int
    bottom: int
    left: int
    right: int


class TemporalConv(nn.Module):
    """Convolution over time at each place: float[N,W,F,h,w] -> the same."""

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
    """Two linear layers with quick GELU between; dropout as in training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.dropout(quick_gelu(self.c_fc(x)), 0.5, self.training))


class GlobalQueryAttention(nn.Module):
    """A transformer layer for one query float[N,1,W] over all tokens float[N,L,W] of a chunk."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, HEADS, batch_first=True)
        self.ln_1, self.ln_2, self.ln_3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = Mlp(width)

    def forward(self, query: Tensor, tokens: Tensor) -> Tensor:
        memory = self.ln_3(tokens)
        x = query + self.attn(self.ln_1(query), memory, memory, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class QueryAttention(nn.Module):
    """Attention of a query float[N,1,W] to its own tokens float[N,L,W]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width, bias=False))
        self.kv = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width, bias=False))
        self.proj = nn.Linear(width, width)

    def forward(self, query: Tensor, tokens: Tensor) -> Tensor:
        k, v = self.kv(tokens).chunk(2, dim=-1)
        # Quirk: scaled by the whole width where attention usually takes that of one head.
        x = multi_head_attention(self.q(query), k, v, HEADS, scale=query.shape[-1] ** -0.5)
        return query + self.proj(x)


class Tower(nn.Module):
    """Canvases float[N,F,3,S,S], F frames that see one another, and the valid box of each -> tokens of each frame.

    A frame of h x w valid tokens gives 1 + h(w+1): a global one, then its rows, each closed by a split token.
    """

    frames = CHUNK_FRAMES

    def __init__(self, width: int) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(width) * 0.02)
        self.split_embedding = nn.Parameter(torch.randn(width) * 0.02)
        self.temporal_cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.balance = nn.Parameter(torch.zeros(width))
        self.patch_embedding = nn.Conv2d(3, width, PATCH, PATCH, bias=False)
        self.lmhra1 = TemporalConv(width)
        self.dpe = nn.Conv3d(width, width, 3, padding=1, groups=width)
        self.dec = GlobalQueryAttention(width)
        self.proj = nn.Sequential(nn.LayerNorm(width), nn.Dropout(0.5), nn.Linear(width, width))
        self.local_attention, self.global_attention = QueryAttention(width), QueryAttention(width)
        # As training starts, these three add nothing.
        for layer in (self.lmhra1.pos_embed[-1], self.dec.attn.out_proj, self.dec.mlp.c_proj):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def forward(self, canvases: Tensor, boxes: Sequence[Box]) -> list[Tensor]:
        x, chunk_tokens = self._mix_frames(canvases)
        tokens: dict[int, Tensor] = {}
        # Frames of one video differ in their boxes where some are filler.
        for box in dict.fromkeys(boxes):
            index = [i for i, other in enumerate(boxes) if other == box]
            valid = x[index][:, :, box.top : box.bottom, box.left : box.right]
            frames = self._frame_tokens(valid, None if chunk_tokens is None else chunk_tokens[index])
            tokens |= dict(zip(index, frames))
        return [tokens[i] for i in range(len(boxes))]

    def _mix_frames(self, canvases: Tensor) -> tuple[Tensor, Tensor | None]:
        """float[N,F,3,S,S] -> patches float[N*F,W,h,w] and, for each frame, the token of its chunk float[N*F,W]."""
        chunks, frames = canvases.shape[:2]
        patches = self.patch_embedding(canvases.flatten(0, 1))
        if frames == 1:  # an image has no neighbours in time
            return patches, None

        start = patches.unflatten(0, (chunks, frames)).transpose(1, 2)
        x = start + self.lmhra1(start)
        x = x + self.dpe(x)
        chunk_token = self.dec(self.temporal_cls_token.expand(chunks, -1, -1), x.flatten(2).transpose(1, 2))
        return (x + start).transpose(1, 2).flatten(0, 1), chunk_token.repeat_interleave(frames, 0)[:, 0]

    def _frame_tokens(self, x: Tensor, chunk_token: Tensor | None) -> Tensor:
        """The valid patches of frames, float[n,W,2h,2w] -> float[n,1+h(w+1),W]."""
        pooled = F.avg_pool2d(x, POOL)
        height, width = pooled.shape[2:]

        # Each token asks with the mean of its patches, and attends to them.
        query = pooled.permute(0, 2, 3, 1).reshape(-1, 1, x.shape[1])
        groups = x.unflatten(2, (height, POOL)).unflatten(4, (width, POOL)).permute(0, 2, 4, 3, 5, 1)
        groups = groups.reshape(len(query), POOL**2, -1)
        local = self.local_attention(query, groups).view(len(x), height, width, -1)

        frame_token = self.global_attention(self.class_embedding.expand(len(x), 1, -1), local.flatten(1, 2))[:, 0]
        if chunk_token is not None:
            share = self.balance.sigmoid()
            frame_token = self.proj((1 - share) * chunk_token + share * frame_token)

        rows = torch.cat([local, self.split_embedding.expand(len(x), height, 1, -1)], 2).flatten(1, 2)
        return torch.cat([frame_token[:, None], rows], 1)


def fit_size(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width of an image on a square canvas: its long side fills it, both are a multiple of a token."""
    tokens_high = -(-size * height // (max(height, width) * TOKEN_PIXELS))
    tokens_wide = -(-size * width // (max(height, width) * TOKEN_PIXELS))
    return tokens_high * TOKEN_PIXELS, tokens_wide * TOKEN_PIXELS


def valid_box(height: int, width: int, size: int) -> Box:
    """Where an image of this many pixels, as `fit_size` gives them, lies on its canvas."""
    row = (size - height) // 2 // TOKEN_PIXELS * POOL
    column = (size - width) // 2 // TOKEN_PIXELS * POOL
    return Box(row, row + height // PATCH, column, column + width // PATCH)


def empty_box(size: int) -> Box:
    """The box of a frame of zeros; the published code completes videos of less than 8 frames by such frames."""
    edge = min(EMPTY_PATCHES, size // PATCH)
    return Box(0, edge, 0, edge)


def num_tokens(box: Box) -> int:
    """Number of tokens of a frame."""
    return 1 + (box.bottom - box.top) // POOL * ((box.right - box.left) // POOL + 1)


def prepare(frames: np.ndarray, size: int) -> Tensor:
    """uint8[T,H,W,3] -> float[T,3,h,w], normalised: PIL bicubic, aspect kept up to whole tokens."""
    height, width = fit_size(frames.shape[1], frames.shape[2], size)
    resized = [Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC) for frame in frames]
    x = torch.from_numpy(np.stack([np.asarray(image) for image in resized])).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1)


def to_canvas(images: Tensor, size: int) -> Tensor:
    """Put images float[...,3,h,w] from `prepare` on canvases float[...,3,size,size], the mean colour around."""
    height, width = images.shape[-2:]
    box = valid_box(height, width, size)
    colour = [(level / 255 - mean) / std for level, mean, std in zip(BACKGROUND, CLIP_MEAN, CLIP_STD)]
    canvas = images.new_tensor(colour).view(3, 1, 1).repeat(*images.shape[:-3], 1, size, size)

    row, column = box.top * PATCH, box.left * PATCH
    canvas[..., row : row + height, column : column + width] = images
    return canvas


def sample_frames(n: int, fps: float) -> np.ndarray:
    """Indices int64 of at most 8 of n frames: 8 evenly spaced of one a second, or of all where there are fewer."""
    each_second = np.arange(0, n, max(1, round(fps)))
    if len(each_second) >= VIDEO_FRAMES:
        return each_second[np.linspace(0, len(each_second) - 1, VIDEO_FRAMES).astype(np.int64)]

    count = min(n, VIDEO_FRAMES)
    # The published code divides by zero for a video of one frame.
    return np.arange(count) * ((n - 1) // max(1, count - 1))


def load(path: Path) -> Tower:
    """Load a tower in eval mode and float32 from Video-Panda's checkpoint, a folder or one of its files.

    Raises UserError: unreadable, another model, tensors missing, unexpected or misshapen.
    """
    state = _state_dict.select(path, _state_dict.after_prefix(PREFIXES, r"^lmhra2\."))
    class_embedding = state.get("class_embedding")
    if class_embedding is None or class_embedding.ndim != 1 or len(class_embedding) % HEADS:
        raise UserError(
            f"{path}: holds no Video-Panda tower: no {PREFIXES[0]}class_embedding in it; give its checkpoint"
        )
    with torch.device("meta"):
        tower = Tower(len(class_embedding))
    return _state_dict.fill(tower, path, "a Video-Panda tower", state)
