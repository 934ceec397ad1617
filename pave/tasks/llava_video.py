"""LLaVA-Video-178K, open-ended questions on videos of one to three minutes: for training only.

Below root, for each folder of FOLDERS, <folder>_v0_1/<folder>_oe_v0_1_qa_processed.json, with the videos of its
archives unpacked beside it. One made-up record:

    {"id": "v_abc", "video": "academic_source/activitynet/v_abc.mp4", "data_source": "1_2_m_academic_v0_1",
     "conversations": [{"from": "human", "value": "<image>\\nWhat is shown?"}, {"from": "gpt", "value": "A street."}]}
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pave.tasks import _read
from pave.types import Prediction, Question, UserError

FOLDERS = ("1_2_m_academic", "1_2_m_youtube", "2_3_m_academic", "2_3_m_youtube")
PER_VIDEO = 2
"""Questions of a video that the release learns: the first in the file."""


def load(split: str, root: Path) -> list[Question]:
    """The first two questions of every video. Raises UserError."""
    found: list[Question] = []
    for folder in FOLDERS:
        files = {"train": f"{folder}_v0_1/{folder}_oe_v0_1_qa_processed.json"}
        file = _read.annotation("llava_video", split, files, root)
        seen: Counter[str] = Counter()
        for question in _read.questions(file, _read.rows, partial(_question, f"{folder}_v0_1")):
            seen[question.qid] += 1
            if seen[question.qid] <= PER_VIDEO:
                found.append(question)
    return _read.numbered(found)


def _question(folder: str, raw: Any) -> Iterable[Question]:
    turns = _read.field(raw, "conversations", list)
    speakers = [_read.field(turn, "from", str) for turn in turns]
    if not turns or speakers != ["human", "gpt"] * (len(turns) // 2):
        raise ValueError(f"has turns of {speakers}, expected human and gpt in turn")
    # The tag marks where the video goes, which the base decides.
    said = [_read.field(turn, "value", str).replace("<image>", "").strip() for turn in turns]
    *history, (question, answer) = zip(said[::2], said[1::2])
    yield Question(
        qid=_read.ident(raw, "id"),
        video=f"{folder}/{_read.field(raw, 'video', str)}",
        text=question,
        answers=(answer,),
        history=tuple(history),
    )


def prompt(question: Question) -> str:
    """The question as it stands."""
    return question.text


def target(question: Question) -> str:
    """The answer."""
    return question.answers[0]


def score(pairs: Iterable[tuple[Question, Prediction | None]]) -> dict[str, float]:
    """Nothing published scores these answers. Raises UserError."""
    raise UserError("llava_video is for training only and has no score; evaluate on a benchmark (`pave list tasks`)")


def chance(questions: Sequence[Question]) -> dict[str, float]:
    """There is no such thing for free text."""
    return {}
