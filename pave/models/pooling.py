"""Resize the square grid of tokens that a vision tower gives for each frame."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F


def on_grid(x: Tensor, resize: Callable[[Tensor], Tensor]) -> Tensor:
    """Resize float[N,h*h,C] -> float[N,S,C], by a function of float[N,C,h,h]."""
    edge = math.isqrt(x.shape[1])
    return resize(x.transpose(1, 2).unflatten(2, (edge, edge))).flatten(2).transpose(1, 2)


def halve(x: Tensor) -> Tensor:
    """Halve both edges, rounded up, bilinear, as LLaVA-OneVision pools: float[N,h*h,C] -> float[N,S,C]."""
    edge = math.ceil(math.isqrt(x.shape[1]) / 2)
    return on_grid(x, lambda grid: F.interpolate(grid, size=(edge, edge), mode="bilinear"))


def average(x: Tensor, edge: int) -> Tensor:
    """Average windows, which overlap where h is no multiple of the edge: float[N,h*h,C] -> float[N,edge*edge,C]."""
    return on_grid(x, lambda grid: F.adaptive_avg_pool2d(grid, edge))
