"""ActivityNet-QA: open-ended questions of people about videos of minutes; a judge compares answers of a few words.

Below root, {train,val,test}_q.json, {train,val,test}_a.json and all_test/v_<name>.mp4 (or .mkv, .webm), for the other
splits all_train and all_val. One made-up record of each file:

    {"video_name": "abcDEF12345", "question": "is the cat black", "question_id": "v_abcDEF12345_3"}
    {"answer": "yes", "type": 3, "question_id": "v_abcDEF12345_3"}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pave.tasks import _annotations, _open_qa
from pave.tasks._open_qa import about as about
from pave.tasks._open_qa import cases as cases
from pave.tasks._open_qa import chance as chance
from pave.tasks._open_qa import prompt as prompt
from pave.tasks._open_qa import score as score
from pave.tasks._open_qa import target as target
from pave.types import Question

FILES = {split: f"{split}_q.json" for split in ("train", "val", "test")}
SPLITS = tuple(FILES)
EXPECTED = {"train": 32000, "val": 18000, "test": 8000}
"""Questions of the published files."""
TYPES = ("motion", "spatial", "temporal", "yes/no", "color", "object", "location", "number", "other")
"""The authors' types of questions, 0 to 8."""


def load(split: str, root: Path) -> list[Question]:
    """All questions of a split; the group is the authors' type. Raises UserError."""
    file = _annotations.annotation("activitynet_qa", split, FILES, root)
    where = _open_qa.place(root, f"all_{split}", ".mp4")
    return _open_qa.paired(file, root / f"{split}_a.json", lambda name: where(f"v_{name.removeprefix('v_')}"), _type)


def _type(raw: Any) -> str:
    number = _annotations.field(raw, "type", int)
    if number not in range(len(TYPES)):
        raise ValueError(f"has the type {number}, expected 0 to {len(TYPES) - 1}")
    return TYPES[number]
