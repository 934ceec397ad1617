"""Which side steps a query frame sees: contiguous windows over time, planned on the host, gathered on the device.

Letters as in pave.types; G windows a sample (T, or 1 where all frames share one), W positions in the longest window.
A *position* is a side step after stretching: signals with fewer steps than frames are stretched linearly in time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Windows(NamedTuple):
    """Positions [start, start + length) for every window; host tensors."""

    start: Tensor
    """int[B,G]"""
    length: Tensor
    """int[B,G]"""
    total: Tensor
    """int[B], positions of each sample after stretching."""
    steps: Tensor
    """int[B], side steps of each sample before stretching."""


def stretched(steps: Sequence[int], frames: int) -> list[int]:
    """Positions after stretching to `frames`; signals that are long enough stay as they are (reference.md C1)."""
    # Quirk: the length comes from a float scale factor, so some pairs end one short: (49, 64) gives 63.
    return [k if k >= frames else int(k * (frames / k)) for k in steps]


def chunks(steps: Sequence[int], frames: int, stretch_to: int | None = None) -> Windows:
    """The released neighbourhood: `frames` consecutive chunks, the first (total mod frames) one longer."""
    total = torch.tensor(stretched(steps, stretch_to or frames))
    frame = torch.arange(frames)
    base, extra = (total // frames)[:, None], (total % frames)[:, None]
    start = frame * base + torch.minimum(frame.expand(len(total), -1), extra)
    return Windows(start, base + (frame < extra).long(), total, torch.tensor(steps))


def centered(steps: Sequence[int], frames: int, reach: int) -> Windows:
    """`reach` positions around the middle of each frame's own chunk, moved inwards at both ends."""
    total = torch.tensor(stretched(steps, frames))
    middle = (torch.arange(frames) + 0.5) * (total / frames)[:, None]
    length = total.clamp(max=reach)[:, None]
    start = torch.minimum((middle - length / 2).round().long().clamp(min=0), total[:, None] - length)
    return Windows(start, length.expand(-1, frames), total, torch.tensor(steps))


def near(seconds: Sequence[Tensor], frame_seconds: Sequence[Tensor], reach: float) -> Windows:
    """All steps whose time stamp lies within `reach` seconds of the frame's; nothing is stretched."""
    start = torch.stack([torch.searchsorted(s, f - reach) for s, f in zip(seconds, frame_seconds)])
    stop = torch.stack([torch.searchsorted(s, f + reach, right=True) for s, f in zip(seconds, frame_seconds)])
    steps = torch.tensor([len(s) for s in seconds])
    return Windows(start, stop - start, steps, steps)


def everything(steps: Sequence[int]) -> Windows:
    """One window a sample, shared by all its frames."""
    total = torch.tensor(steps)
    return Windows(torch.zeros_like(total)[:, None], total[:, None], total, total)


class Gather:
    """Cuts float[B,K,...] into float[B,G,W,...]: a view where windows are equal and whole, else one (linear) gather."""

    def __init__(self, windows: Windows, steps: int, device: torch.device, dtype: torch.dtype) -> None:
        start, length, total, valid = windows
        self.shape = (*start.shape, max(int(length.max()), 1))
        slot = torch.arange(self.shape[2])
        self.position = start[..., None] + slot
        """int[B,G,W], host; slots beyond a window's length are masked."""
        inside = slot < length[..., None]
        self.is_view = bool(inside.all()) and bool((total == steps).all()) and self.shape[1] * self.shape[2] == steps
        self.mask = None if bool(inside.all()) else inside.to(device)
        """bool[B,G,W] or None where every slot holds a key."""
        self.empty = (length == 0).to(device) if bool((length == 0).any()) else None
        """bool[B,G] windows without any key, or None."""
        self.low, self.high, self.weight = (
            (None, None, None) if self.is_view else self._source(total, valid, device, dtype)
        )

    def _source(
        self, total: Tensor, valid: Tensor, device: torch.device, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Two step indices and a weight for every slot: trilinear, align_corners, along time only."""
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        last = (valid - 1)[:, None, None]
        scale = torch.where(total == valid, 1.0, (valid - 1).to(exact) / (total - 1).clamp(min=1).to(exact))
        source = self.position.to(exact) * scale.to(exact)[:, None, None]
        low = source.long().clamp(max=last)
        if bool((total == valid).all()):
            return low.to(device), None, None
        weight = (source - low).clamp(0, 1)
        return low.to(device), (low + 1).clamp(max=last).to(device), weight.to(device, dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """float[B,K,...] -> float[B,G,W,...]"""
        if self.low is None:
            return x.view(*self.shape, *x.shape[2:])
        sample = torch.arange(len(x), device=x.device)[:, None, None]
        low = x[sample, self.low]
        if self.high is None or self.weight is None:
            return low
        return torch.lerp(low, x[sample, self.high], self.weight.reshape(*self.weight.shape, *[1] * (x.dim() - 2)))
