"""AVQA: multiple choice about VGGSound clips. There is no public test set: the split val is the test.

Below root, as in the folder data of the authors' repository: annotation/train_qa.json, annotation/val_qa.json and
video/<video_name>.mp4. One made-up record:

    {"id": 41, "video_name": "Zz0_ab-9QxY_000030", "video_id": 77, "question_text": "What is making the sound?",
     "multi_choice": ["kettle", "drum", "train", "dog"], "answer": 2, "question_relation": "Both",
     "question_type": "Which"}
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pave.metrics.choice import letter
from pave.metrics.match import counts, share
from pave.tasks import _read
from pave.types import Prediction, Question

FILES = {"train": "annotation/train_qa.json", "val": "annotation/val_qa.json"}
LETTERS = "ABCD"


def load(split: str, root: Path) -> list[Question]:
    """All questions of a split; the group is the question's type. Raises UserError."""
    file = _read.annotation("avqa", split, FILES, root)
    return _read.numbered(_read.questions(file, _read.rows, _question))


def _question(raw: Any) -> Iterable[Question]:
    options = _read.texts(raw, "multi_choice")
    answer = _read.field(raw, "answer", int)
    if len(options) != len(LETTERS) or answer not in range(len(LETTERS)):
        raise ValueError(f"has {len(options)} options and answer {answer}, expected four and 0 to 3")
    lines = [_read.field(raw, "question_text", str), *(f"{name}.{text}" for name, text in zip(LETTERS, options))]
    yield Question(
        qid=_read.ident(raw, "id"),
        video=f"video/{_read.field(raw, 'video_name', str)}.mp4",
        text="\n".join(lines),
        answers=(LETTERS[answer],),
        group=_read.field(raw, "question_type", str),
    )


def prompt(question: Question) -> str:
    """Question and options in the published words."""
    # Quirk: it speaks of subtitles, which there are none of; no space stands between an option's letter and text.
    return (
        "Select the best answer to the following multiple-choice question based on the video and the subtitles. "
        f"Respond with only the letter (A, B, C, or D) of the correct option.\n{question.text}\n"
        "Answer with the option's letter from the given choices directly."
    )


def target(question: Question) -> str:
    """The letter."""
    return question.answers[0]


def score(pairs: Iterable[tuple[Question, Prediction | None]]) -> dict[str, float]:
    """Accuracy over all questions and by type as published, and `strict`, by the letter that the answer chooses.

    A question without a prediction is wrong, and counted as missing.
    """
    pairs = list(pairs)
    said = [None if p is None else p.text for _, p in pairs]
    gold = [q.answers[0] for q, _ in pairs]
    # Quirk: right is what has the letter anywhere, so `Answer: B` is right for A as well.
    right = [text is not None and answer in text for text, answer in zip(said, gold)]
    strict = [text is not None and letter(text, LETTERS) == answer for text, answer in zip(said, gold)]
    return share("accuracy", right, [q.group for q, _ in pairs]) | share("strict", strict) | counts(said)


def chance(questions: Sequence[Question]) -> dict[str, float]:
    """Guessing one of four."""
    kinds = sorted({f"accuracy {q.group}" for q in questions})
    return dict.fromkeys(("accuracy", *kinds, "strict"), 1 / len(LETTERS))
