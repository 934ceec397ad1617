"""The patch's 3D rotary embedding: one ladder of 64 frequencies, shared out over time, row and column."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

HEAD_DIM = 128
SECTIONS = (16, 24, 24)
"""Frequencies that turn with time, row and column."""


def cell_centers(cells: int, grid: int) -> Tensor:
    """int[cells], where `cells` cells of a side sit on a finer side of `grid`: their centres, floored."""
    return _places(grid, 2 * cells + 1)[1::2]


def frame_times(frames: int, positions: Tensor) -> Tensor:
    """int[B,frames], the key positions (int[B] of them) at which the query frames stand."""
    return torch.stack([_places(max(frames, n) - 1, frames) for n in positions.tolist()])


def _places(last: int, count: int) -> Tensor:
    """int[count], evenly from 0 to `last`, floored."""
    # Checkpoints have learnt numpy's rounding: float32, torch's linspace or whole numbers differ by one at some sizes.
    return torch.from_numpy(np.linspace(0, last, count, dtype=np.int64))


def square_side(tokens: int) -> int:
    """The side of a square grid. Raises ValueError for other counts: rows and columns would be undefined."""
    side = round(tokens**0.5)
    if side * side != tokens:
        raise ValueError(f"3D rope and convolutional input maps need a square grid of tokens, got {tokens} a frame")
    return side


class Turn(NamedTuple):
    """Cosine and sine of every token's 64 angles."""

    cos: Tensor
    sin: Tensor


def turn(time: Tensor, tokens: int, grid: int, like: Tensor) -> Turn:
    """float[R,U*tokens,64] for times int[R,U] and a square grid of tokens placed on a grid x grid map."""
    cells = cell_centers(square_side(tokens), grid)
    row, column = torch.cartesian_prod(cells, cells).view(-1, 2).unbind(-1)
    ladder = 1 / 10000.0 ** (torch.arange(0, HEAD_DIM, 2, dtype=torch.float32) / HEAD_DIM)
    by_time, by_row, by_column = ladder.split(SECTIONS)
    parts = [
        (time[..., None, None] * by_time).expand(*time.shape, tokens, -1),
        (row[:, None] * by_row).expand(*time.shape, -1, -1),
        (column[:, None] * by_column).expand(*time.shape, -1, -1),
    ]
    angle = torch.cat(parts, -1).flatten(1, 2)
    return Turn(angle.cos().to(like), angle.sin().to(like))


def rotate(x: Tensor, by: Turn) -> Tensor:
    """float[..., heads, 128] turned by float[..., 64]; channel c pairs with c + 64 (halves, not neighbours)."""
    cos, sin = by.cos[..., None, :], by.sin[..., None, :]
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
