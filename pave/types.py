"""Data types that all of pave shares, and the letters of its shapes.

B batch, T video frames, S tokens a frame, K side steps, P tokens a step, C side width, Q query width, D LLM width,
L text length, N video tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from torch import Tensor


VIDEO_TOKEN_ID = -200
"""Id that stands for a visual token among token ids."""
IGNORE_INDEX = -100
"""Label of a token that the loss leaves out."""


class UserError(ValueError):
    """An error that the user can mend: one line with the file, what it holds, what was expected and what to do."""


class MissingAnnotations(UserError):
    """A file of annotations is missing; callers may skip its split."""


@dataclass(frozen=True)
class Question:
    """One question about one video, made by a task; can be written as JSON."""

    qid: str
    video: str
    text: str
    answers: tuple[str, ...]
    group: str = ""
    history: tuple[tuple[str, str], ...] = ()
    """Earlier (question, answer) turns of the same conversation."""
    features: str = ""
    """Feature file below the folder of a side-channel, without its suffix; empty for the stem of `video`."""
    images: tuple[str, ...] = ()
    """Separate images instead of a video, for bases that accept them; `video` is the first."""
    rejected: str = ""
    """The worse of two answers, for preference optimisation."""


class Clip(NamedTuple):
    """Decoded key frames."""

    frames: np.ndarray
    """uint8[T,H,W,3]"""
    seconds: np.ndarray
    """float[T], the time at which each frame is shown."""


class Images(NamedTuple):
    """Separate images, which do not follow one another."""

    frames: list[np.ndarray]
    """uint8[H,W,3] each, of any size."""


class MediaItem(NamedTuple):
    """One media file, or folder of files, to extract side tokens from."""

    name: str
    """Name of its feature file below the feature folder, without suffix."""
    path: Path
    """A media file, or a folder for side-channels made of many files."""


class SideTokens(NamedTuple):
    """Tokens of one side-channel of one video."""

    x: Tensor
    """float[K,P,C]"""
    seconds: Tensor | None = None
    """float[K], the middle of the time that each step covers, or None for a side-channel without time."""


class VideoTokens(NamedTuple):
    """Features that a base computes from key frames."""

    query: Tensor
    """float[B,T,S,Q], features of the vision tower, before the projector."""
    embeds: Tensor
    """float[B,T,S,D], after the projector."""


@dataclass(frozen=True)
class Prediction:
    """One answer of a model: one line of predictions.jsonl."""

    qid: str
    text: str
