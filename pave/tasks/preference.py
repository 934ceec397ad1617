"""Two answers to a question about a video, one better: LLaVA-Hound's 17k pairs and others in their form.

For training with `dpo_beta`. Below root train.jsonl, a record a line, with the media under root. A made-up one:

    {"id": "v_1", "video": "a/v_1.mp4", "prompt": "<video>\\nWhat is shown?", "chosen": "A dog.", "rejected": "A cat."}
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
from pave.utils import placeholders

SPLITS = ("train",)
EXPECTED: dict[str, int] = {}
"""Of any size."""


def load(split: str, root: Path) -> list[Question]:
    """Every pair. Raises UserError."""
    file = _annotations.annotation("preference", split, {"train": "train.jsonl"}, root)
    return _annotations.numbered(_annotations.records(file, _annotations.rows, _question))


def _question(raw: Any) -> Iterable[Question]:
    text = _annotations.field(raw, "prompt", str)
    (text,) = placeholders.bare([text], text)
    video = _annotations.field(raw, "video", str)
    qid = _annotations.ident(raw, "id") if "id" in raw else video
    better, worse = (_annotations.field(raw, name, str) for name in ("chosen", "rejected"))
    yield Question(qid, video, text.strip(), (better,), rejected=worse)


def about(split: str) -> dict[str, str]:
    """What is learnt."""
    return {"prompt": "the question alone", "references": "the chosen answer, against the rejected one"}
