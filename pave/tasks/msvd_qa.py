"""MSVD-QA: short open-ended questions about clips of some seconds; a judge compares answers of a word.

Below root, with videos/<name>.avi (or .mp4, .mkv ...):

* split test, as packed by Video-LLaVA: test_q.json and test_a.json. One made-up record of each:

    {"video_name": "abcDEF12345_3_9", "question": "what is a cat doing?", "question_id": "00001"}
    {"answer": "sleep", "question_id": "00001"}

* splits test_qa, val_qa, train_qa, as first published: test_qa.json, ... A made-up record:

    {"answer": "sleep", "id": 7, "question": "what is a cat doing?", "video_id": 1201}

  with youtube_mapping.txt, whose lines are `abcDEF12345_3_9 vid1201`; without it the video is named vid1201.
"""

from __future__ import annotations

from pathlib import Path

from pave.tasks import base
from pave.tasks._video_qa_files import read_one_file, read_two_files, video_finder
from pave.types import Question, UserError


class Task(base.OpenEndedTask):
    files = {"test": "test_q.json", "test_qa": "test_qa.json", "val_qa": "val_qa.json", "train_qa": "train_qa.json"}
    splits = tuple(files)
    expected_counts = {"test": 13157, "test_qa": 13157, "val_qa": 6415, "train_qa": 30933}

    def load(self, split: str, root: Path) -> list[Question]:
        """Questions of a split; the group is the first word of a question. Raises UserError."""
        file = self.annotation_file(split, root)
        video_path = video_finder(root, "videos", ".avi")
        if split == "test":
            return read_two_files(file, root / "test_a.json", video_path)
        names = _read_video_names(root / "youtube_mapping.txt")
        return read_one_file(file, video_path, lambda number: names.get(f"vid{number}", f"vid{number}"))


def _read_video_names(file: Path) -> dict[str, str]:
    """Names of videos by number, as vid1201; empty where the mapping is missing."""
    names: dict[str, str] = {}
    for line in file.read_text().splitlines() if file.is_file() else ():
        words = line.split()
        if len(words) == 2:
            names[words[1]] = words[0]
        elif words:
            text = " ".join(words)
            raise UserError(f"{file}: found '{text:.60}', expected lines of a name and a number as in vid1201")
    return names
