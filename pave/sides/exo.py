"""The exo side: cameras that watch from outside, as tokens of the base's own tower before its projector.

items:  DIR/<take>/<camera>.mp4, or Ego-Exo4D as downloaded; a video a view, the wearer's own cameras left out
encode: video -> SideTokens float[T,P,C] of evenly spaced frames, each at its time; T = 32, P = 14*14, C = 1152
files:  a folder with one file a view, of ours (*.safetensors: float[T,P,C]) or official (*.pt: the same); at each
        moment the views follow one another, so K = T * V
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from pave.media import feature_files
from pave.media.frame_sampling import uniform
from pave.media.video import read_frames
from pave.models import pooling
from pave.models.encoders import siglip
from pave.sides import _frame_features, _official_features, base
from pave.types import Clip, MediaItem, SideTokens, UserError

EGO_EXO4D_VIDEOS = "frame_aligned_videos/downscaled/448"
"""Where Ego-Exo4D keeps the videos of a take."""
EGO_CAMERA = re.compile(r"(aria|ego)\d*(_.*)?")
"""Names of cameras that the wearer carries, as aria01_214-1."""


@dataclass(frozen=True)
class Options:
    """How a view becomes tokens."""

    frames: int = 32
    """Evenly spaced over the video; with as many key frames, each sees its own moment in every view."""

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise UserError(f"frames={self.frames}: must be above 0")


class SideChannel(base.SideChannel[Options, siglip.Tower, Clip]):
    """Other views of the same scene."""

    options_type = Options
    extractors = ("llava_onevision_tower",)
    reads_video = False

    def find_items(self, folder: Path) -> list[MediaItem]:
        """List the outside cameras, named <take>/<camera>, or in Ego-Exo4D as the task `egoexo` looks for them.

        Of Ego-Exo4D the folder may be the whole download or its `takes`. Raises UserError where there is none.
        """
        takes = folder / "takes" if (folder / "takes").is_dir() else folder
        videos = {f"takes/{f.relative_to(takes).with_suffix('')}": f for f in takes.glob(f"*/{EGO_EXO4D_VIDEOS}/*.mp4")}
        if not videos:
            videos = {str(f.relative_to(folder).with_suffix("")): f for f in folder.glob("*/*.mp4")}

        items = sorted(MediaItem(name, f) for name, f in videos.items() if not EGO_CAMERA.fullmatch(f.stem))
        if not items:
            raise UserError(
                f"{folder}: {len(videos)} videos, none of an outside camera; expected <take>/<camera>.mp4 or "
                f"takes/<take>/{EGO_EXO4D_VIDEOS}/<camera>.mp4"
            )
        return items

    def build(self, weights: Path, options: Options, device: torch.device) -> siglip.Tower:
        """Load the tower of the base that will be patched, from its folder. Raises UserError: not such a folder."""
        return siglip.load(weights).to(device)

    def reader(self, encoder: siglip.Tower, options: Options) -> Callable[[Path], Clip]:
        """From a video to frames in the tower's size, and their times. Raises UserError: no video, damaged."""
        choose = partial(_choose_frames, count=options.frames)
        return partial(read_frames, choose=choose, prepare=partial(siglip.prepare, size=encoder.image_size))

    def encode(self, inputs: Clip, encoder: siglip.Tower, options: Options) -> SideTokens:
        """Compute tokens of one view on the CPU, pooled as the base pools its own, each frame's with its time."""
        return _frame_features.encode(inputs, encoder, pooling.halve)

    def load(self, path: Path) -> SideTokens:
        """Read float32[T*V,P,C]: all views of a folder, in the order of their names. Raises UserError."""
        return self._interleave(_view_files(path), path)

    def load_random(self, path: Path, rng: random.Random) -> SideTokens:
        """Read a random part of the views, at least one, for training. Raises UserError."""
        files = _view_files(path)
        return self._interleave(sorted(rng.sample(files, rng.randint(1, len(files)))), path)

    def _interleave(self, files: Sequence[Path], folder: Path) -> SideTokens:
        """Steps in the order t0v0, t0v1, ..., t1v0, ..."""
        views = [self._load_view(file) for file in files]
        shapes = sorted({tuple(view.x.shape) for view in views})
        if len(shapes) > 1:
            raise UserError(f"{folder}: views of shapes {shapes[0]} and {shapes[1]}, expected one; extract them again")

        times = [view.seconds for view in views if view.seconds is not None]
        seconds = torch.stack(times, 1).flatten() if len(times) == len(views) else None
        return SideTokens(torch.stack([view.x for view in views], 1).flatten(0, 1), seconds)

    def _load_view(self, file: Path) -> SideTokens:
        """float32[T,P,C] of one view."""
        if file.suffix != ".pt":
            return feature_files.read(file, self.extractors)
        return SideTokens(_official_features.read(file, lambda shape: len(shape) == 3, "(steps, tokens, width)"))


def _choose_frames(seconds: np.ndarray, fps: float, count: int) -> np.ndarray:
    return uniform(len(seconds), count)


def _view_files(folder: Path) -> list[Path]:
    """One file a view: ours, or the official ones where there is none of ours."""
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.pt"))
    if not files:
        raise UserError(f"{folder}: no feature files; expected a folder with one .safetensors or .pt for each view")
    return files
