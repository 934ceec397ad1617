"""Choose the key frames of a video: evenly spaced, at a rate, or by a base's own rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


def uniform(num_frames: int, count: int) -> np.ndarray:
    """int64[count], evenly spaced frame numbers, ends included, rounded down; they repeat where count > num_frames.

    The rule of the official training and evaluation.
    """
    return np.linspace(0, num_frames - 1, count).astype(np.int64)


class FrameSampling(NamedTuple):
    """Which key frames a video has: evenly spaced ones, unless a base has a rule of its own."""

    max_frames: int = 32
    frames_per_second: float = 0.0
    """Up to `max_frames` of them; 0: always `max_frames`."""
    multiple: int = 1
    """At a rate, the number of frames is a multiple of this, and not 0."""
    native_rule: Callable[[int, float], np.ndarray] | None = None
    """From the number of frames and their rate to the frame numbers, int64[T]."""

    def choose(self, num_frames: int, fps: float) -> np.ndarray:
        """The numbers int64[T] of the key frames of a video with `num_frames` frames, `fps` a second."""
        if self.native_rule is not None:
            return self.native_rule(num_frames, fps)
        if not self.frames_per_second:
            return uniform(num_frames, self.max_frames)

        count = min(int(num_frames / fps * self.frames_per_second), num_frames, self.max_frames)
        return uniform(num_frames, max(count // self.multiple, 1) * self.multiple)
