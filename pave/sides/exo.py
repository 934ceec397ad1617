"""The exo side: cameras that watch from outside, as tokens of the base's own tower before its projector.

files:  a folder with one file a view, of ours (*.safetensors: float[T,P,C]) or as published (*.pt: the same, T = 32,
        P = 14*14, C = 1152); at each moment the views follow one another, so K = T * V
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch

from pave.io import store
from pave.sides import _published
from pave.types import SideTokens, UserError

DIM = 1152
"""Width of the published features."""
EXTRACTOR = "llava_onevision_tower"


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
        return store.read(file, EXTRACTOR)
    return SideTokens(_published.read(file, lambda shape: len(shape) == 3, "(steps, tokens, width)"))
