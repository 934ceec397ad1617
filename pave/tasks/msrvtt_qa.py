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

from pave.tasks import _annotations, _open_qa
from pave.tasks._open_qa import about as about
from pave.tasks._open_qa import cases as cases
from pave.tasks._open_qa import chance as chance
from pave.tasks._open_qa import prompt as prompt
from pave.tasks._open_qa import score as score
from pave.tasks._open_qa import target as target
from pave.types import Question

FILES = {"test": "test_q.json", "test_qa": "test_qa.json", "val_qa": "val_qa.json", "train_qa": "train_qa.json"}
SPLITS = tuple(FILES)
EXPECTED = {"test": 72821, "test_qa": 72821, "val_qa": 12278, "train_qa": 158581}
"""Questions of the published files."""


def load(split: str, root: Path) -> list[Question]:
    """All questions of a split; the group is the first word of a question. Raises UserError."""
    file = _annotations.annotation("msrvtt_qa", split, FILES, root)
    where = _open_qa.place(root, "videos/all", ".mp4")
    if split == "test":
        return _open_qa.paired(file, root / "test_a.json", where)
    return _open_qa.single(file, where, "video{}".format)
