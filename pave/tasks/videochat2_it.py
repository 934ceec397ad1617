"""VideoChat2-IT and corpora in its form: conversations about videos, pictures, or several pictures; for training only.

Below root train.json, with the media under root; several corpora train together with `data.mixture`, a root each.
Made-up records, with a hint before the question or none:

    [{"video": "k400/abc.mp4", "QA": [{"i": "Watch the clip.", "q": "What is shown?", "a": "A street."},
                                      {"q": "Is it night?", "a": "No."}]},
     {"image": "coco/1.jpg", "QA": [{"q": "What is it?", "a": "A cat."}]},
     {"multi-image": ["m4/1_a.jpg", "m4/1_b.jpg"], "QA": [{"q": "What changed?", "a": "The cat left."}]}]
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pave.tasks import _annotations
from pave.tasks._learnt import chance as chance
from pave.tasks._learnt import prompt as prompt
from pave.tasks._learnt import score as score
from pave.tasks._learnt import target as target
from pave.types import Question

SPLITS = ("train",)
EXPECTED: dict[str, int] = {}
"""A corpus of any size."""
KINDS = ("video", "image", "multi-image")


def load(split: str, root: Path) -> list[Question]:
    """One question a record, the last of its conversation. Raises UserError."""
    file = _annotations.annotation("videochat2_it", split, {"train": "train.json"}, root)
    return _annotations.numbered(_annotations.records(file, _annotations.rows, _question))


def _question(raw: Any) -> Iterable[Question]:
    kind = next((name for name in KINDS if isinstance(raw, dict) and name in raw), None)
    if kind is None:
        raise ValueError("has no 'video', 'image' or 'multi-image'")
    media = _annotations.texts(raw, kind) if kind == "multi-image" else (_annotations.field(raw, kind, str),)
    turns = _annotations.field(raw, "QA", list)
    if not turns:
        raise ValueError("has no turns in 'QA'")
    *history, (text, answer) = ((_asked(turn), _annotations.field(turn, "a", str)) for turn in turns)
    pictures = () if kind == "video" else media
    yield Question(media[0], media[0], text, (answer,), group=kind, history=tuple(history), pictures=pictures)


def _asked(turn: Any) -> str:
    hint = _annotations.field(turn, "i", str) if "i" in turn else ""
    return " ".join(part for part in (hint.strip(), _annotations.field(turn, "q", str).strip()) if part)


def about(split: str) -> dict[str, str]:
    """What is learnt."""
    return {"prompt": "the hint, if any, and the question", "references": "the last answer; earlier turns are shown"}
