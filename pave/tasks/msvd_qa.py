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

from pave.tasks import _annotations, _open_qa
from pave.tasks._open_qa import about as about
from pave.tasks._open_qa import cases as cases
from pave.tasks._open_qa import chance as chance
from pave.tasks._open_qa import prompt as prompt
from pave.tasks._open_qa import score as score
from pave.tasks._open_qa import target as target
from pave.types import Question, UserError

FILES = {"test": "test_q.json", "test_qa": "test_qa.json", "val_qa": "val_qa.json", "train_qa": "train_qa.json"}
SPLITS = tuple(FILES)
EXPECTED = {"test": 13157, "test_qa": 13157, "val_qa": 6415, "train_qa": 30933}
"""Questions of the published files."""
NAMES = "youtube_mapping.txt"


def load(split: str, root: Path) -> list[Question]:
    """All questions of a split; the group is the first word of a question. Raises UserError."""
    file = _annotations.annotation("msvd_qa", split, FILES, root)
    where = _open_qa.place(root, "videos", ".avi")
    if split == "test":
        return _open_qa.paired(file, root / "test_a.json", where)
    names = _names(root / NAMES)
    return _open_qa.single(file, where, lambda number: names.get(f"vid{number}", f"vid{number}"))


def _names(file: Path) -> dict[str, str]:
    """By number, as vid1201, where the mapping is there."""
    lines = [line.split() for line in file.read_text().splitlines() if line.strip()] if file.is_file() else []
    broken = next((line for line in lines if len(line) != 2), None)
    if broken:
        raise UserError(f"{file}: found '{' '.join(broken):.60}', expected lines of a name and a number as in vid1201")
    return {number: name for name, number in lines}
