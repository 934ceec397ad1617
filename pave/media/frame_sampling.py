"""Which frames of a video are looked at: evenly spaced, some a second, by a base's own rule, or as the release did."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pave.types import UserError


def uniform(n: int, count: int) -> np.ndarray:
    """int64[count], evenly spaced frame numbers of n frames, ends included, cut to whole; repeats where count > n.

    The rule of the released training and evaluation.
    """
    return np.linspace(0, n - 1, count).astype(np.int64)


class Frames(NamedTuple):
    """Which key frames a video has: evenly spaced ones, unless a base has a rule of its own."""

    most: int = 32
    rate: float = 0.0
    """A second, but no more than `most`; 0: always `most`."""
    unit: int = 1
    """With a rate their number is a multiple of this, at least once."""
    own: Callable[[int, float], np.ndarray] | None = None
    """Numbers int64[T] of n frames at so many a second."""

    def choose(self, n: int, fps: float) -> np.ndarray:
        """int64[T] of n frames."""
        if self.own is not None:
            return self.own(n, fps)
        if not self.rate:
            return uniform(n, self.most)
        return uniform(n, max(min(int(n / fps * self.rate), n, self.most) // self.unit, 1) * self.unit)


class Picks(NamedTuple):
    """Chosen frames."""

    frames: np.ndarray
    """int64[M], their numbers."""
    seconds: np.ndarray
    """float[M], as the release states them in a prompt."""


def sample(n: int, fps: float, per_second: float = 1, most: int = 0, force: bool = False, least: int = 0) -> Picks:
    """The release's choice among n frames: some a second, at least `least`, at most `most` (0: no limit).

    `force` takes exactly `most`. UserError where the rate leaves no whole step, or `most` is not above `least`.
    """
    # Quirk: Python rounds halves to even, so 2.5 frames a second give a step of 2.
    step = round(fps / per_second)
    if step == 0:
        raise UserError(f"{per_second} frames a second asked of a video of {fps} fps; ask for fewer")
    if most and least >= most:
        raise UserError(f"at least {least} and at most {most} frames asked; the second must be larger")
    index = np.arange(0, n, step)
    # Quirk: these times count steps, as if each were exactly one second, whatever the rate.
    picks = Picks(index, index / step)
    if len(picks.frames) < least:
        picks = _evenly(n, fps, least)
    if most and (force or len(picks.frames) > most):
        picks = _evenly(n, fps, most)
    return picks


def _evenly(n: int, fps: float, count: int) -> Picks:
    index = uniform(n, count)
    return Picks(index, index / fps)


def time_text(seconds: np.ndarray) -> str:
    """`0.00s,0.97s,1.93s`: the times of frames as the release writes them into a prompt."""
    return ",".join(f"{s:.2f}s" for s in seconds)
