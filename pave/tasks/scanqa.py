"""ScanQA: questions about a ScanNet scene. The tests have no public answers: the split val is the test.

Below root: qa/ScanQA_v1.0_{train,val}.json, and a folder scannet/<scene_id> of frames named by number (0.jpg, 1.jpg,
...) for each scene. One made-up record:

    {"scene_id": "scene9999_00", "object_ids": [4], "object_names": ["chair"], "question_id": "val-scene9999-0",
     "question": "What color is the chair?", "answers": ["brown", "dark brown"]}
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pave.metrics import captions
from pave.metrics.match import clean, scene_scores
from pave.tasks import _read
from pave.types import Prediction, Question

FILES = {part: f"qa/ScanQA_v1.0_{part}.json" for part in ("train", "val")}


def load(split: str, root: Path) -> list[Question]:
    """All questions of a split. Raises UserError."""
    file = _read.annotation("scanqa", split, FILES, root)
    return _read.numbered(_read.questions(file, _read.rows, _question))


def _question(raw: Any) -> Iterable[Question]:
    yield Question(
        qid=_read.ident(raw, "question_id"),
        video=f"scannet/{_read.field(raw, 'scene_id', str)}",
        text=_read.field(raw, "question", str),
        answers=_read.texts(raw, "answers"),
    )


def prompt(question: Question) -> str:
    """The question as it stands: the release asks for no short answer."""
    return question.text


def target(question: Question) -> str:
    """The first of the answers."""
    return question.answers[0]


def score(pairs: Iterable[tuple[Question, Prediction | None]]) -> dict[str, float]:
    """Exact match, and caption metrics of the cleaned texts, as fractions (papers print 100 times them)."""
    cleaned = [(tuple(map(clean, q.answers)), None if p is None else clean(p.text)) for q, p in pairs]
    return {**scene_scores(cleaned), **captions.score(cleaned)}


def chance(questions: Sequence[Question]) -> dict[str, float]:
    """There is no such thing for free text."""
    return {}
