"""LLaVA-Video-178K, open-ended questions on videos of one to three minutes: for training only.

Below root, for each folder of FOLDERS, <folder>_v0_1/<folder>_oe_v0_1_qa_processed.json, with the videos of its
archives unpacked beside it. A feature file is named as the video without its first folder, as released:
activitynet/v_abc. One made-up record:

    {"id": "v_abc", "video": "academic_source/activitynet/v_abc.mp4", "data_source": "1_2_m_academic_v0_1",
     "conversations": [{"from": "human", "value": "<image>\\nWhat is shown?"}, {"from": "gpt", "value": "A street."}]}
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from pave.tasks import _annotations, _official_files
from pave.tasks._learnt import chance as chance
from pave.tasks._learnt import prompt as prompt
from pave.tasks._learnt import score as score
from pave.tasks._learnt import target as target
from pave.types import Question

FOLDERS = ("1_2_m_academic", "1_2_m_youtube", "2_3_m_academic", "2_3_m_youtube")
SPLITS = ("train",)
EXPECTED: dict[str, int] = {}
"""The numbers of questions differ between revisions of the data set."""
PER_VIDEO = 2
"""Questions of a video that the release learns: the first in the file."""


def load(split: str, root: Path) -> list[Question]:
    """The first two questions of every video. Raises UserError."""
    found: list[Question] = []
    for folder in FOLDERS:
        files = {"train": f"{folder}_v0_1/{folder}_oe_v0_1_qa_processed.json"}
        file = _annotations.annotation("llava_video", split, files, root)
        seen: Counter[str] = Counter()
        for question in _annotations.records(file, _annotations.rows, partial(_question, f"{folder}_v0_1")):
            seen[question.qid] += 1
            if seen[question.qid] <= PER_VIDEO:
                found.append(question)
    return _annotations.numbered(found)


def _question(folder: str, raw: Any) -> Iterable[Question]:
    *history, (question, answer) = ((q.strip(), a.strip()) for q, a in _annotations.turns(raw))
    video = _annotations.field(raw, "video", str)
    yield Question(
        qid=_annotations.ident(raw, "id"),
        video=f"{folder}/{video}",
        text=question,
        answers=(answer,),
        history=tuple(history),
        features=str(PurePosixPath(video.split("/", 1)[-1]).with_suffix("")),
    )


def about(split: str) -> dict[str, str]:
    """What is learnt."""
    return {"prompt": "the question alone", "references": f"the first {PER_VIDEO} questions of a video"}


def prepare(raw: Path, out: Path) -> list[str]:
    """The first two records of every video, as the release learns them, one file for each folder."""
    lines = []
    for folder in FOLDERS:
        name = f"{folder}_v0_1/{folder}_oe_v0_1_qa_processed"
        file = _annotations.annotation("llava_video", "train", {"train": f"{name}.json"}, raw)
        seen: Counter[str] = Counter()
        lines.append(
            _official_files.write(
                out / f"{name}_2pv.json", _annotations.records(file, _annotations.rows, partial(_first, seen))
            )
        )
    return lines


def _first(seen: Counter[str], raw: Any) -> Iterable[Any]:
    video = _annotations.ident(raw, "id")
    seen[video] += 1
    if seen[video] <= PER_VIDEO:
        yield raw
