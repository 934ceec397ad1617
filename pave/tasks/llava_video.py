"""LLaVA-Video-178K, open-ended questions on videos of one to three minutes: for training only.

Below root, for each folder of FOLDERS, <folder>_v0_1/<folder>_oe_v0_1_qa_processed.json, with the videos of its
archives unpacked beside it. A feature file is named as the video without its first folder, as the official ones are:
activitynet/v_abc. One made-up record:

    {"id": "v_abc", "video": "academic_source/activitynet/v_abc.mp4", "data_source": "1_2_m_academic_v0_1",
     "conversations": [{"from": "human", "value": "<image>\\nWhat is shown?"}, {"from": "gpt", "value": "A street."}]}
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TypeVar

from pave.tasks import base
from pave.tasks._annotations import Record, conversation, field, id_field, read_records, unique_ids
from pave.tasks._official_files import write_json
from pave.types import Question

T = TypeVar("T")
FOLDERS = ("1_2_m_academic", "1_2_m_youtube", "2_3_m_academic", "2_3_m_youtube")
QUESTIONS_PER_VIDEO = 2
"""Questions of a video that the official code learns: the first in the file."""


class Task(base.TrainingOnlyTask):
    # No count is expected: it differs between revisions of the data set.
    prepares = True

    def load(self, split: str, root: Path) -> list[Question]:
        """The first two questions of every video. Raises UserError."""
        self.check_split(split)
        selected: list[Question] = []
        for folder in FOLDERS:
            questions = read_records(root / f"{_file_stem(folder)}.json", partial(_parse_record, f"{folder}_v0_1"))
            selected += _first_of_each_video(questions, lambda question: question.qid)
        return unique_ids(selected)

    def describe(self, split: str) -> dict[str, str]:
        return {"prompt": "the question alone", "references": f"the first {QUESTIONS_PER_VIDEO} questions of a video"}

    def prepare(self, raw: Path, out: Path) -> list[str]:
        """Write the first two records of every video, as the official code learns them, one file for each folder."""
        lines = []
        for stem in map(_file_stem, FOLDERS):
            records = read_records(raw / f"{stem}.json", lambda record: [(id_field(record, "id"), record)])
            selected = _first_of_each_video(records, lambda pair: pair[0])
            lines.append(write_json(out / f"{stem}_2pv.json", [record for _, record in selected]))
        return lines


def _file_stem(folder: str) -> str:
    return f"{folder}_v0_1/{folder}_oe_v0_1_qa_processed"


def _first_of_each_video(items: Iterable[T], video_id: Callable[[T], str]) -> list[T]:
    counts: Counter[str] = Counter()
    selected = []
    for item in items:
        counts[video_id(item)] += 1
        if counts[video_id(item)] <= QUESTIONS_PER_VIDEO:
            selected.append(item)
    return selected


def _parse_record(folder: str, record: Record) -> Iterable[Question]:
    *history, (question, answer) = [(text.strip(), reply.strip()) for text, reply in conversation(record)]
    video = field(record, "video", str)
    yield Question(
        qid=id_field(record, "id"),
        video=f"{folder}/{video}",
        text=question,
        answers=(answer,),
        history=tuple(history),
        features=str(PurePosixPath(video.split("/", 1)[-1]).with_suffix("")),
    )
