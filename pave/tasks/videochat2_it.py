"""VideoChat2-IT and corpora in its form: conversations about videos, pictures, or several pictures; for training only.

Below root train.json, with the media under root; several corpora train together with `data.mixture`, a root each.
Made-up records, with a hint before the question or none:

    [{"video": "k400/abc.mp4", "QA": [{"i": "Watch the clip.", "q": "What is shown?", "a": "A street."},
                                      {"q": "Is it night?", "a": "No."}]},
     {"image": "coco/1.jpg", "QA": [{"q": "What is it?", "a": "A cat."}]},
     {"multi-image": ["m4/1_a.jpg", "m4/1_b.jpg"], "QA": [{"q": "What changed?", "a": "The cat left."}]}]
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pave.tasks import base
from pave.tasks._annotations import Record, field, has_field, read_questions, texts_field
from pave.types import Question

MEDIA_FIELDS = ("video", "image", "multi-image")


class Task(base.TrainingOnlyTask):
    files = {"train": "train.json"}

    def load(self, split: str, root: Path) -> list[Question]:
        """One question a record, the last of its conversation. Raises UserError."""
        return read_questions(self.annotation_file(split, root), _parse_record)

    def describe(self, split: str) -> dict[str, str]:
        return {
            "prompt": "the hint, if any, and the question",
            "references": "the last answer; earlier turns are shown",
        }


def _parse_record(record: Record) -> Iterable[Question]:
    kind = next((name for name in MEDIA_FIELDS if has_field(record, name)), None)
    if kind is None:
        raise ValueError("has no 'video', 'image' or 'multi-image'")
    media = texts_field(record, kind) if kind == "multi-image" else (field(record, kind, str),)

    turns = field(record, "QA", list)
    if not turns:
        raise ValueError("has no turns in 'QA'")
    *history, (text, answer) = [(_question_text(turn), field(turn, "a", str)) for turn in turns]

    yield Question(
        qid=media[0],
        video=media[0],
        text=text,
        answers=(answer,),
        group=kind,
        history=tuple(history),
        images=() if kind == "video" else media,
    )


def _question_text(turn: Record) -> str:
    """Question of a turn behind its hint, if it has one."""
    hint = field(turn, "i", str).strip() if has_field(turn, "i") else ""
    question = field(turn, "q", str).strip()
    return " ".join(part for part in (hint, question) if part)
