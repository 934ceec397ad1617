"""What data sets have in common that are only learnt from: their text as it stands, and no score."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NoReturn

from pave.types import Prediction, Question, UserError


def prompt(question: Question) -> str:
    """The question as it stands."""
    return question.text


def target(question: Question) -> str:
    """The answer, or the better of two."""
    return question.answers[0]


def score(pairs: Iterable[tuple[Question, Prediction | None]]) -> NoReturn:
    """Nothing published scores these answers. Raises UserError."""
    raise UserError("this task is for training only and has no score; evaluate on a benchmark (`pave list tasks`)")


def chance(questions: Sequence[Question]) -> dict[str, float]:
    """There is no such thing for free text."""
    return {}
