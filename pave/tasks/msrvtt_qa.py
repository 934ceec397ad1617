"""MSRVTT-QA: short open-ended questions about clips of 10 to 30 seconds; a judge compares answers of a word.

Below root, with videos/all/video<number>.mp4:

* split test, as packed by Video-LLaVA: test_q.json and test_a.json. One made-up record of each:

    {"video_name": "video9010", "question": "what is a cat doing?", "question_id": 900001}
    {"answer": "sleep", "question_id": 900001}

* splits test_qa, val_qa, train_qa, as first published: test_qa.json, ... A made-up record:

    {"answer": "sleep", "category_id": 3, "id": 900001, "question": "what is a cat doing?", "video_id": 9010}
"""

from __future__ import annotations

from pathlib import Path

from pave.tasks import base
from pave.tasks._video_qa_files import read_one_file, read_two_files, video_finder
from pave.types import Question


class Task(base.OpenEndedTask):
    files = {"test": "test_q.json", "test_qa": "test_qa.json", "val_qa": "val_qa.json", "train_qa": "train_qa.json"}
    splits = tuple(files)
    expected_counts = {"test": 72821, "test_qa": 72821, "val_qa": 12278, "train_qa": 158581}

    def load(self, split: str, root: Path) -> list[Question]:
        """Questions of a split; the group is the first word of a question. Raises UserError."""
        file = self.annotation_file(split, root)
        video_path = video_finder(root, "videos/all", ".mp4")
        if split == "test":
            return read_two_files(file, root / "test_a.json", video_path)
        return read_one_file(file, video_path, "video{}".format)
