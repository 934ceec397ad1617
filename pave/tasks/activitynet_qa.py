"""ActivityNet-QA: open-ended questions of people about videos of minutes; a judge compares answers of a few words.

Below root, {train,val,test}_q.json, {train,val,test}_a.json and all_test/v_<name>.mp4 (or .mkv, .webm), for the other
splits all_train and all_val. One made-up record of each file:

    {"video_name": "abcDEF12345", "question": "is the cat black", "question_id": "v_abcDEF12345_3"}
    {"answer": "yes", "type": 3, "question_id": "v_abcDEF12345_3"}
"""

from __future__ import annotations

from pathlib import Path

from pave.tasks import base
from pave.tasks._annotations import Record, field
from pave.tasks._video_qa_files import read_two_files, video_finder
from pave.types import Question

TYPES = ("motion", "spatial", "temporal", "yes/no", "color", "object", "location", "number", "other")
"""The authors' types of questions, 0 to 8."""


class Task(base.OpenEndedTask):
    splits = ("train", "val", "test")
    expected_counts = {"train": 32000, "val": 18000, "test": 8000}

    def load(self, split: str, root: Path) -> list[Question]:
        """Questions of a split; the group is the authors' type. Raises UserError."""
        self.check_split(split)
        video_path = video_finder(root, f"all_{split}", ".mp4")
        return read_two_files(
            root / f"{split}_q.json",
            root / f"{split}_a.json",
            lambda name: video_path(f"v_{name.removeprefix('v_')}"),
            _type_name,
        )


def _type_name(record: Record) -> str:
    number = field(record, "type", int)
    if number not in range(len(TYPES)):
        raise ValueError(f"has the type {number}, expected 0 to {len(TYPES) - 1}")
    return TYPES[number]
