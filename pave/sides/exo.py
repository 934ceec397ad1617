"""The exo side: cameras that watch from outside, as tokens of the base's own tower before its projector.

find:   DIR/<take>/<camera>.mp4, or Ego-Exo4D as downloaded; a video a view, the wearer's own cameras left out
encode: video -> SideTokens float[T,P,C] of evenly spaced frames, each at its time; T = 32, P = 14*14, C = 1152
files:  a folder with one file a view, of ours (*.safetensors: float[T,P,C]) or as published (*.pt: the same); at each
        moment the views follow one another, so K = T * V
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from pave.media import feature_files
from pave.media.frame_sampling import uniform
from pave.media.video import read_frames
from pave.models import pooling
from pave.models.encoders import siglip
from pave.sides import _frame_features, _official_features
from pave.types import Clip, Item, SideTokens, UserError

DIM = 1152
"""Width of the published features."""
EXTRACTORS = ("llava_onevision_tower",)
DOWNLOADED = "frame_aligned_videos/downscaled/448"
"""Where Ego-Exo4D keeps the videos of a take."""
EGO = re.compile(r"(aria|ego)\d*(_.*)?")
"""Names of cameras that the wearer carries, as aria01_214-1."""


@dataclass(frozen=True)
class Options:
    """How a view becomes tokens."""

    frames: int = 32
    """Evenly spaced over the video; with as many key frames, each sees its own moment in every view."""

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise UserError(f"frames={self.frames}: must be above 0")


def extractor(options: Options) -> str:
    """Id of the tower and its pooling, whatever the options."""
    return EXTRACTORS[0]


def find(source: Path) -> list[Item]:
    """Every outside camera, named <take>/<camera>, or in Ego-Exo4D as the task `egoexo` looks for it. UserError: none.

    Of Ego-Exo4D the folder may be the whole download or its `takes`.
    """
    takes = source / "takes" if (source / "takes").is_dir() else source
    named = {f"takes/{f.relative_to(takes).with_suffix('')}": f for f in takes.glob(f"*/{DOWNLOADED}/*.mp4")}
    named = named or {str(f.relative_to(source).with_suffix("")): f for f in source.glob("*/*.mp4")}
    items = sorted(Item(name, file) for name, file in named.items() if not EGO.fullmatch(file.stem))
    if not items:
        raise UserError(
            f"{source}: {len(named)} videos, none of an outside camera; expected <take>/<camera>.mp4 or "
            f"takes/<take>/{DOWNLOADED}/<camera>.mp4"
        )
    return items


def build(weights: Path, options: Options, device: torch.device) -> siglip.Tower:
    """The tower of the base that will be patched, from its folder. UserError: not such a folder."""
    return siglip.load(weights).to(device)


def reader(encoder: siglip.Tower, options: Options) -> Callable[[Path], Clip]:
    """From a video to frames in the tower's size, and their times. UserError: no video, damaged."""
    return partial(_look, frames=options.frames, size=encoder.image_size)


def _look(path: Path, frames: int, size: int) -> Clip:
    return read_frames(path, lambda seconds, fps: uniform(len(seconds), frames), partial(siglip.prepare, size=size))


def encode(clip: Clip, encoder: siglip.Tower, options: Options) -> SideTokens:
    """Tokens of one view on the CPU, pooled as the base pools its own, each frame's with its time."""
    return _frame_features.encode(clip, encoder, pooling.halve)


def load(path: Path) -> SideTokens:
    """float32[T*V,P,C]: all views of a folder, in the order of their names. UserError: unusable."""
    return _interleave(_views(path), path)


def load_random(path: Path, rng: random.Random) -> SideTokens:
    """The same with a random part of the views, at least one, for training. UserError: unusable."""
    views = _views(path)
    return _interleave(sorted(rng.sample(views, rng.randint(1, len(views)))), path)


def _views(folder: Path) -> list[Path]:
    """One file a view: ours, or the published ones where there is none of ours."""
    views = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.pt"))
    if not views:
        raise UserError(f"{folder}: no feature files; expected a folder with one .safetensors or .pt for each view")
    return views


def _interleave(files: Sequence[Path], folder: Path) -> SideTokens:
    """Steps in the order t0v0, t0v1, ..., t1v0, ..."""
    views = [_read(file) for file in files]
    shapes = sorted({tuple(view.x.shape) for view in views})
    if len(shapes) > 1:
        raise UserError(f"{folder}: views of shapes {shapes[0]} and {shapes[1]}, expected one; extract them again")
    times = [view.seconds for view in views if view.seconds is not None]
    seconds = torch.stack(times, 1).flatten() if len(times) == len(views) else None
    return SideTokens(torch.stack([view.x for view in views], 1).flatten(0, 1), seconds)


def _read(file: Path) -> SideTokens:
    """float32[T,P,C] of one view."""
    if file.suffix != ".pt":
        return feature_files.read(file, EXTRACTORS)
    return SideTokens(_official_features.read(file, lambda shape: len(shape) == 3, "(steps, tokens, width)"))
