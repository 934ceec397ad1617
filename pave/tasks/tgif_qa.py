"""TGIF-QA: short open-ended questions about animated pictures; a judge compares answers of a word.

Below root, as packed by Video-LLaVA: mp4/<name>.mp4 (or .gif), test_q.json and test_a.json.
One made-up record of each:

    {"video_name": "tumblr_zz9abcDE", "question": "what is the cat chasing?", "question_id": "900001"}
    {"answer": "ball", "question_id": "900001"}
"""

from __future__ import annotations

from pathlib import Path

from pave.tasks import base
from pave.tasks._video_qa_files import read_two_files, video_finder
from pave.types import Question


class Task(base.OpenEndedTask):
    files = {"test": "test_q.json"}
    splits = tuple(files)

    def load(self, split: str, root: Path) -> list[Question]:
        """Questions; the group is the first word of a question. Raises UserError."""
        file = self.annotation_file(split, root)
        return read_two_files(file, root / "test_a.json", video_finder(root, "mp4", ".mp4"))
