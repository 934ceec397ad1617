"""The patch's 3D rotary embedding: 64 frequencies, shared out over time, row and column."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

HEAD_DIM = 128
BASE = 10000.0
"""The slowest frequency turns about this much slower than the fastest."""
SECTIONS = (16, 24, 24)
"""Frequencies that turn with time, row and column."""


class Rotation(NamedTuple):
    """Cosine and sine of every token's 64 angles."""

    cos: Tensor
    sin: Tensor


def cell_centers(cells: int, grid: int) -> Tensor:
    """Place a coarse side of `cells` on a finer side of `grid` -> int[cells], their centres, floored."""
    return _evenly_spaced(grid, 2 * cells + 1)[1::2]


def frame_times(frames: int, positions: Tensor) -> Tensor:
    """Place query frames among key positions: counts of positions int[B] -> int[B,frames]."""
    return torch.stack([_evenly_spaced(max(frames, count) - 1, frames) for count in positions.tolist()])


def _evenly_spaced(last: int, count: int) -> Tensor:
    """int[count], evenly from 0 to `last`, floored."""
    # Checkpoints have learnt numpy's rounding: float32, torch's linspace or whole numbers differ by one at some sizes.
    return torch.from_numpy(np.linspace(0, last, count, dtype=np.int64))


def square_side(tokens: int) -> int:
    """The side of a square grid. Raises ValueError for other counts: rows and columns would be undefined."""
    side = round(tokens**0.5)
    if side * side != tokens:
        raise ValueError(f"3D rope and convolutional input maps need a square grid of tokens, got {tokens} a frame")
    return side


def rotation_at(time: Tensor, tokens: int, grid: int, like: Tensor) -> Rotation:
    """Rotations float[R,U*tokens,64] at times int[R,U], for a square grid of tokens placed on a grid x grid map."""
    cells = cell_centers(square_side(tokens), grid)
    row, column = torch.cartesian_prod(cells, cells).view(-1, 2).unbind(-1)

    frequencies = 1 / BASE ** (torch.arange(0, HEAD_DIM, 2, dtype=torch.float32) / HEAD_DIM)
    time_frequencies, row_frequencies, column_frequencies = frequencies.split(SECTIONS)

    angles = [
        (time[..., None, None] * time_frequencies).expand(*time.shape, tokens, -1),
        (row[:, None] * row_frequencies).expand(*time.shape, -1, -1),
        (column[:, None] * column_frequencies).expand(*time.shape, -1, -1),
    ]
    angle = torch.cat(angles, -1).flatten(1, 2)
    return Rotation(angle.cos().to(like), angle.sin().to(like))


def apply_rotary(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate float[...,heads,128] by float[...,64]; channel c pairs with c + 64 (halves, not neighbours)."""
    cos, sin = rotation.cos[..., None, :], rotation.sin[..., None, :]
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
