"""The dense side: more frames than the LLM gets, two a second, as 2x2 tokens of an image or video tower.

encode: video -> SideTokens float[K,P,C], a step a frame at the time it is shown, P = pool * pool; C = 1152 with the
        base's own SigLIP, 1024 with LanguageBind, whose K is a multiple of 8
files:  <video>.safetensors of ours, without class tokens; or the official <video>.pt: float[K,1+P,C], K a multiple of
        8, P = 4, C = 1024
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from pave.media import feature_files
from pave.media.frame_sampling import uniform
from pave.media.video import read_frames
from pave.models import pooling
from pave.models.encoders import languagebind_video, siglip
from pave.sides import _frame_features, _official_features, base
from pave.sides._frame_features import Encoder
from pave.types import Clip, SideTokens, UserError


@dataclass(frozen=True)
class Options:
    """Which frames, and what is kept of each; the official code has tower=languagebind."""

    tower: Literal["siglip", "languagebind"] = "siglip"
    """siglip: the base's own, with --weights of the base; languagebind: 8 frames at a time see one another."""
    fps: float = 2.0
    """Frames a second."""
    pool: int = 2
    """Tokens along one edge of a frame."""
    least: int = 0
    """Take at least so many frames of a short video."""

    def __post_init__(self) -> None:
        if self.fps <= 0 or self.pool < 1:
            raise UserError(f"fps={self.fps:g} pool={self.pool}: both must be above 0")


class SideChannel(base.SideChannel[Options, Encoder, Clip]):
    """More frames than the LLM gets, as few tokens each."""

    options_type = Options
    extractors = ("languagebind_video", "siglip_frames")

    def extractor(self, options: Options) -> str:
        """Id of the tower."""
        return "siglip_frames" if options.tower == "siglip" else "languagebind_video"

    def build(self, weights: Path, options: Options, device: torch.device) -> Encoder:
        """Load the tower, from a base's folder or LanguageBind's. Raises UserError: not such weights."""
        if options.tower == "siglip":
            return siglip.load(weights).to(device)
        return languagebind_video.load(weights).to(device)

    def reader(self, encoder: Encoder, options: Options) -> Callable[[Path], Clip]:
        """From a video to frames in the tower's size, and their times. Raises UserError: no video, damaged."""
        choose = partial(choose_frames, per_second=options.fps, at_least=options.least, multiple=encoder.frames)
        prepare = siglip.prepare if options.tower == "siglip" else languagebind_video.prepare
        return partial(read_frames, choose=choose, prepare=partial(prepare, size=encoder.image_size))

    def encode(self, inputs: Clip, encoder: Encoder, options: Options) -> SideTokens:
        """Compute tokens on the CPU, each frame's with its time."""
        return _frame_features.encode(inputs, encoder, partial(pooling.average, edge=options.pool))

    def load(self, path: Path) -> SideTokens:
        """Read float32[K,P,C] from our file, or from an official .pt, which states no times. Raises UserError."""
        if path.suffix != ".pt":
            return feature_files.read(path, self.extractors)

        expected = "(steps, tokens, width) with a square number of tokens, or one more"
        x = _official_features.read(path, _is_grid, expected)
        # Without a class token, the tokens of a frame are a square.
        return SideTokens(x if _is_square(x.shape[1]) else x[:, 1:])


def choose_frames(seconds: np.ndarray, fps: float, per_second: float, at_least: int, multiple: int) -> np.ndarray:
    """Numbers int64[N] of the frames to take, evenly spaced, ends included; N is a multiple of `multiple`, not 0.

    A video too short for one group, or for `at_least`, gives frames several times.
    """
    # Where the rate varies, what a file states of it may be wrong; its time stamps are not.
    duration = max(len(seconds) / fps, seconds[-1])
    groups = max(int(max(duration * per_second, at_least) // multiple), 1)
    return uniform(len(seconds), groups * multiple)


def _is_grid(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 and (_is_square(shape[1]) or _is_square(shape[1] - 1))


def _is_square(count: int) -> bool:
    return math.isqrt(count) ** 2 == count
