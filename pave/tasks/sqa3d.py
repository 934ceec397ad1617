"""SQA3D: questions about a ScanNet scene to someone who stands in it.

Below root: ScanQA_format/SQA_{train,val,test}.json, as in the authors' ScanQA_format.zip, and a folder
scannet/<scene_id> of frames named by number (0.jpg, 1.jpg, ...) for each scene. One made-up record:

    {"scene_id": "scene9999_00", "situation": "I am sitting on the bed.", "question": "Which side is the door on?",
     "answers": ["left"], "question_id": 220602999999, "object_ids": [], "object_names": [],
     "position": [0.1, 0.2, 0, 0, 0, 0.5, 0.9]}
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pave.metrics.match import clean, scene_scores
from pave.tasks import _read
from pave.types import Prediction, Question

FILES = {part: f"ScanQA_format/SQA_{part}.json" for part in ("train", "val", "test")}
KINDS = ("What", "Is", "How", "Can", "Which")


def load(split: str, root: Path) -> list[Question]:
    """All questions of a split; the group is how the question starts, as LEO and the literature count. UserError."""
    file = _read.annotation("sqa3d", split, FILES, root)
    return _read.numbered(_read.questions(file, _read.rows, _question))


def _question(raw: Any) -> Iterable[Question]:
    asked = _read.field(raw, "question", str)
    start = asked.lstrip().lower()
    yield Question(
        qid=_read.ident(raw, "question_id"),
        video=f"scannet/{_read.field(raw, 'scene_id', str)}",
        text=f"{_read.field(raw, 'situation', str)} {asked}",
        answers=_read.texts(raw, "answers"),
        group=next((kind for kind in KINDS if start.startswith(kind.lower())), "Other"),
    )


def prompt(question: Question) -> str:
    """Situation and question: the release asks for no short answer."""
    return question.text


def target(question: Question) -> str:
    """The first of the answers."""
    return question.answers[0]


def score(pairs: Iterable[tuple[Question, Prediction | None]]) -> dict[str, float]:
    """Exact match with the first answer, over all questions and by how they start."""
    pairs = list(pairs)
    cleaned = [((clean(q.answers[0]),), None if p is None else clean(p.text)) for q, p in pairs]
    return scene_scores(cleaned, [q.group for q, _ in pairs])


def chance(questions: Sequence[Question]) -> dict[str, float]:
    """There is no such thing for free text."""
    return {}
