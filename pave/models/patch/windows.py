"""Which side steps a query frame sees: contiguous windows over time, planned on the host, gathered on the device.

Letters as in pave.types; G windows a sample (T, or 1 where all frames share one), R rows = windows of the whole batch,
W positions in the longest window, M valid steps of the whole batch, packed one sample after the other.
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


def stretched_length(steps: Sequence[int], frames: int) -> list[int]:
    """Positions of each signal after stretching to `frames`; signals that are long enough stay as they are."""
    # Quirk: the length comes from a float scale factor, so some pairs end one short: (49, 64) gives 63.
    return [k if k >= frames else int(k * (frames / k)) for k in steps]


def chunks(steps: Sequence[int], frames: int, stretch_to: int | None = None) -> Windows:
    """The official neighbourhood: `frames` consecutive chunks, the first (total mod frames) one longer."""
    total = torch.tensor(stretched_length(steps, frames if stretch_to is None else stretch_to))
    size, longer = (total // frames)[:, None], (total % frames)[:, None]

    frame = torch.arange(frames)
    start = frame * size + torch.minimum(frame.expand(len(total), -1), longer)
    return Windows(start, size + (frame < longer).long(), total, torch.tensor(steps))


def centered(steps: Sequence[int], frames: int, reach: int) -> Windows:
    """`reach` positions around the middle of each frame's own chunk, moved inwards at both ends."""
    total = torch.tensor(stretched_length(steps, frames))
    middle = (torch.arange(frames) + 0.5) * (total / frames)[:, None]
    length = total.clamp(max=reach)[:, None]
    start = torch.minimum((middle - length / 2).round().long().clamp(min=0), total[:, None] - length)
    return Windows(start, length.expand(-1, frames), total, torch.tensor(steps))


def within_seconds(seconds: Sequence[Tensor], frame_seconds: Sequence[Tensor], reach: float) -> Windows:
    """All steps whose time stamp lies within `reach` seconds of the frame's; nothing is stretched."""
    starts, stops = [], []
    for step_times, frame_times in zip(seconds, frame_seconds):
        step_times, frame_times = step_times.cpu(), frame_times.cpu()
        starts.append(torch.searchsorted(step_times, frame_times - reach))
        stops.append(torch.searchsorted(step_times, frame_times + reach, right=True))

    start, steps = torch.stack(starts), torch.tensor([len(s) for s in seconds])
    return Windows(start, torch.stack(stops) - start, steps, steps)


def one_window(steps: Sequence[int]) -> Windows:
    """One window a sample, shared by all its frames."""
    total = torch.tensor(steps)
    return Windows(torch.zeros_like(total)[:, None], total[:, None], total, total)


class WindowGather:
    """Cuts the windows of some rows out of packed steps; a view where they follow each other, else one gather."""

    def __init__(self, windows: Windows, rows: slice, per_step: int, like: Tensor) -> None:
        device = like.device
        start, length = windows.start.flatten()[rows, None], windows.length.flatten()[rows, None]

        def by_row(per_sample: Tensor) -> Tensor:
            """int[B] -> int[R,1]"""
            return per_sample.repeat_interleave(windows.start.shape[1])[rows, None]

        slot = torch.arange(max(int(length.max()), 1))
        self.position = start + slot
        """int[R,W], host; slots beyond a window's length are masked."""
        self.length = length.flatten() * per_step
        """int[R], host: tokens of each window."""

        # An empty window may attend to its meaningless slots and is zeroed afterwards: no kernel meets a row of -inf.
        is_filled, is_empty = slot < length, length == 0
        self.mask: Tensor | None = None
        """bool[R,W*P] or None where every slot holds a token."""
        if not bool(is_filled.all()):
            self.mask = (is_filled | is_empty).repeat_interleave(per_step, 1).to(device)
        self.empty = is_empty.to(device) if bool(is_empty.any()) else None
        """bool[R,1] windows without any step, or None."""

        # Each position lies between two packed steps, `low` and `high`; `weight` is the share of `high`.
        steps = by_row(windows.steps)
        first = by_row(windows.steps.cumsum(0) - windows.steps)
        low, weight = _step_below(self.position, by_row(windows.total), steps, like.dtype)
        high = low if weight is None else torch.minimum(low + 1, steps - 1)
        low, high = low + first, high + first

        self.span = slice(int(low.min()), int(high.max()) + 1)
        """The packed steps from which these rows take theirs."""
        low, high = low - self.span.start, high - self.span.start
        in_order = weight is None and torch.equal(low.flatten(), torch.arange(low.numel()))
        self.low = None if in_order else low.to(device)
        self.high = high.to(device)
        self.weight = None if weight is None else weight.to(device)

    def __call__(self, x: Tensor) -> Tensor:
        """Cut the windows out of the steps of `span`: float[m,P,H] -> float[R,W*P,H]."""
        if self.low is None:
            return x.view(len(self.position), -1, x.shape[-1])
        low = x[self.low]
        if self.weight is not None:
            low = torch.lerp(low, x[self.high], self.weight[..., None, None].to(x.dtype))
        return low.flatten(1, 2)


def _step_below(position: Tensor, total: Tensor, steps: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """The step below each position int[R,W] and the next one's weight, float or None: linear, ends on ends."""
    last = steps - 1
    if torch.equal(total, steps):
        return torch.minimum(position, last), None

    exact = torch.float64 if dtype == torch.float64 else torch.float32
    scale = last.to(exact) / (total - 1).clamp(min=1).to(exact)
    scale = torch.where(total == steps, 1.0, scale).to(exact)
    fractional = position.to(exact) * scale
    low = torch.minimum(fractional.long(), last)
    return low, (fractional - low).clamp(0, 1)
