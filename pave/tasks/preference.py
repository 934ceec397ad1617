"""Two answers to a question about a video, one better: LLaVA-Hound's 17k pairs and others in their form.

For training with `dpo_beta`. Below root train.jsonl, a record a line, with the media under root. A made-up one:

    {"id": "v_1", "video": "a/v_1.mp4", "prompt": "<video>\\nWhat is shown?", "chosen": "A dog.", "rejected": "A cat."}
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pave.tasks import base
from pave.tasks._annotations import Record, field, has_field, id_field, read_questions
from pave.types import Question
from pave.utils import video_tags


class Task(base.TrainingOnlyTask):
    files = {"train": "train.jsonl"}

    def load(self, split: str, root: Path) -> list[Question]:
        """Every pair. Raises UserError."""
        return read_questions(self.annotation_file(split, root), _parse_record)

    def describe(self, split: str) -> dict[str, str]:
        return {"prompt": "the question alone", "references": "the chosen answer, against the rejected one"}


def _parse_record(record: Record) -> Iterable[Question]:
    text = field(record, "prompt", str)
    (text,) = video_tags.remove_video_tag([text], text)
    video = field(record, "video", str)
    yield Question(
        qid=id_field(record, "id") if has_field(record, "id") else video,
        video=video,
        text=text.strip(),
        answers=(field(record, "chosen", str),),
        rejected=field(record, "rejected", str),
    )
