"""The data that flows through pave, and the letters of its shapes.

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


VIDEO = -200
"""Stands for visual tokens among token ids."""
IGNORE = -100
"""A label that is not learnt."""


class UserError(ValueError):
    """Something the user can mend: one line with the file, what was found, what was expected and what to do."""


class NotThere(UserError):
    """A file of annotations that is not where it belongs; of a split that one may do without."""


@dataclass(frozen=True)
class Question:
    """One question about one video; made by a task, JSON-able."""

    qid: str
    video: str
    text: str
    answers: tuple[str, ...]
    group: str = ""
    history: tuple[tuple[str, str], ...] = ()
    """Earlier (question, answer) turns of the same conversation."""
    features: str = ""
    """Feature file below a side's folder, without its suffix; empty for the stem of `video`."""
    pictures: tuple[str, ...] = ()
    """Separate pictures instead of a video, for bases that see them; `video` is the first."""
    rejected: str = ""
    """The worse of two answers, for learning from preferences."""


class Clip(NamedTuple):
    """Decoded key frames."""

    frames: np.ndarray
    """uint8[T,H,W,3]"""
    seconds: np.ndarray
    """float[T], when each frame is shown."""


class Pictures(NamedTuple):
    """Separate pictures, which do not follow one another."""

    frames: list[np.ndarray]
    """uint8[H,W,3] of each, of any size."""


class Item(NamedTuple):
    """One thing to extract the tokens of."""

    name: str
    """Of its feature file below the store, without suffix."""
    path: Path
    """A media file, or a folder for channels made of many files."""


class SideTokens(NamedTuple):
    """Tokens of one side-channel of one video."""

    x: Tensor
    """float[K,P,C]"""
    seconds: Tensor | None = None
    """float[K], the middle of what each step covers, or None where the channel has no clock."""


class VideoTokens(NamedTuple):
    """What a base makes of the key frames."""

    query: Tensor
    """float[B,T,S,Q], the tower's features before the projector."""
    embeds: Tensor
    """float[B,T,S,D], after the projector."""


@dataclass(frozen=True)
class Prediction:
    """One answer of a model, as one line of predictions.jsonl."""

    qid: str
    text: str
