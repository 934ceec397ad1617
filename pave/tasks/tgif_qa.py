"""TGIF-QA: short open-ended questions about animated pictures; a judge compares answers of a word.

Below root, as packed by Video-LLaVA: mp4/<name>.mp4 (or .gif), test_q.json and test_a.json.
One made-up record of each:

    {"video_name": "tumblr_zz9abcDE", "question": "what is the cat chasing?", "question_id": "900001"}
    {"answer": "ball", "question_id": "900001"}
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

FILES = {"test": "test_q.json"}
SPLITS = tuple(FILES)


def load(split: str, root: Path) -> list[Question]:
    """All questions; the group is the first word of a question. Raises UserError."""
    file = _annotations.annotation("tgif_qa", split, FILES, root)
    return _open_qa.paired(file, root / "test_a.json", _open_qa.place(root, "mp4", ".mp4"))
