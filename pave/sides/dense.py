"""The dense side: more frames than the language model gets, two a second, as 2x2 tokens of a picture or video tower.

encode: video -> SideTokens float[K,P,C], a step a frame at the time it is shown, P = pool * pool; C = 1152 of the
        base's own SigLIP, 1024 of LanguageBind, whose K is a multiple of 8
files:  <video>.safetensors of ours, without class tokens; or <video>.pt as published: float[K,1+P,C], K a multiple of
        8, P = 4, C = 1024
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Literal

import numpy as np
import torch

from pave.media import feature_files
from pave.media.frame_sampling import uniform
from pave.media.video import read_frames
from pave.models import pooling
from pave.models.encoders import languagebind_video, siglip
from pave.sides import _frame_features, _official_features
from pave.sides._frame_features import Encoder
from pave.types import Clip, SideTokens, UserError

DIM = 1024
"""Width of the published features."""
EXTRACTORS = ("languagebind_video", "siglip_frames")


@dataclass(frozen=True)
class Options:
    """Which frames, and what is kept of each; the release's are tower=languagebind."""

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


def extractor(options: Options) -> str:
    """Id of the tower."""
    return "siglip_frames" if options.tower == "siglip" else "languagebind_video"


def load(path: Path) -> SideTokens:
    """float32[K,P,C] from our feature file, or from a published .pt one, which states no times. UserError: unusable.

    A class token is known by the count: without it the tokens of a frame are a square.
    """
    if path.suffix != ".pt":
        return feature_files.read(path, EXTRACTORS)
    x = _official_features.read(
        path,
        lambda shape: len(shape) == 3 and (_is_square(shape[1]) or _is_square(shape[1] - 1)),
        "(steps, tokens, width) with a square number of tokens, or one more",
    )
    return SideTokens(x if _is_square(x.shape[1]) else x[:, 1:])


def _is_square(count: int) -> bool:
    return math.isqrt(count) ** 2 == count


def choose(seconds: np.ndarray, fps: float, per_second: float, least: int, together: int) -> np.ndarray:
    """Numbers of the frames to take, evenly spaced, ends included; whole groups of `together`, one at least.

    A video too short for a group, or for `least`, gives frames several times. Released for constant frame rates.
    """
    # Where the rate varies, what a file states of it may be far off; its time stamps are not.
    duration = max(len(seconds) / fps, seconds[-1])
    groups = max(int(max(duration * per_second, least) // together), 1)
    return uniform(len(seconds), groups * together)


def build(weights: Path, options: Options, device: torch.device) -> Encoder:
    """The tower, from a base's folder or LanguageBind's. UserError: not such weights."""
    return _module(options).load(weights).to(device)


def reader(encoder: Encoder, options: Options) -> Callable[[Path], Clip]:
    """From a video to frames in the tower's size, and their times. UserError: no video, damaged."""
    return partial(_look, options=options, size=encoder.image_size, together=encoder.frames)


def _look(path: Path, options: Options, size: int, together: int) -> Clip:
    pick = partial(choose, per_second=options.fps, least=options.least, together=together)
    return read_frames(path, pick, partial(_module(options).prepare, size=size))


def encode(clip: Clip, encoder: Encoder, options: Options) -> SideTokens:
    """Tokens on the CPU, each frame's with its time."""
    return _frame_features.encode(clip, encoder, partial(pooling.average, edge=options.pool))


def _module(options: Options) -> ModuleType:
    return siglip if options.tower == "siglip" else languagebind_video
