"""Two answers to a question about a video, one better: LLaVA-Hound's 17k pairs and others in their form.

For training with `dpo_beta`. Below root train.jsonl, a record a line, with the media under root. A made-up one:

    {"id": "v_1", "video": "a/v_1.mp4", "prompt": "<video>\\nWhat is shown?", "chosen": "A dog.", "rejected": "A cat."}
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pave.tasks import _read
from pave.types import Prediction, Question, UserError

SPLITS = ("train",)
EXPECTED: dict[str, int] = {}
"""Of any size."""
TAGS = ("<video>\n", "<image>\n", "\n<video>", "\n<image>", "<video>", "<image>")
"""Where the video goes is for the base to say."""


def load(split: str, root: Path) -> list[Question]:
    """Every pair. Raises UserError."""
    file = _read.annotation("preference", split, {"train": "train.jsonl"}, root)
    return _read.numbered(_read.records(file, _read.rows, _question))


def _question(raw: Any) -> Iterable[Question]:
    text = _read.field(raw, "prompt", str)
    for tag in TAGS:
        text = text.replace(tag, "")
    video = _read.field(raw, "video", str)
    qid = _read.ident(raw, "id") if "id" in raw else video
    better, worse = (_read.field(raw, name, str) for name in ("chosen", "rejected"))
    yield Question(qid, video, text.strip(), (better,), rejected=worse)


def prompt(question: Question) -> str:
    """The question alone."""
    return question.text


def target(question: Question) -> str:
    """The better answer."""
    return question.answers[0]


def score(pairs: Iterable[tuple[Question, Prediction | None]]) -> dict[str, float]:
    """Answers are not scored. Raises UserError."""
    raise UserError("preference is for training only and has no score; evaluate on a benchmark (`pave list tasks`)")


def chance(questions: Sequence[Question]) -> dict[str, float]:
    """There is no such thing for free text."""
    return {}


def about(split: str) -> dict[str, str]:
    """What is learnt."""
    return {"prompt": "the question alone", "references": "the chosen answer, against the rejected one"}
