"""AVQA: multiple choice about VGGSound clips. There is no public test set: the split val is the test.

Below root, as in the folder data of the authors' repository: annotation/train_qa.json, annotation/val_qa.json and
video/<video_name>.mp4; or the release's avqa_train_qa_instruct.json (train_prepared). One made-up record:

    {"id": 41, "video_name": "Zz0_ab-9QxY_000030", "video_id": 77, "question_text": "What is making the sound?",
     "multi_choice": ["kettle", "drum", "train", "dog"], "answer": 2, "question_relation": "Both",
     "question_type": "Which"}
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pave.tasks import _annotations, _official_files
from pave.tasks.metrics.exact_match import counts, share
from pave.tasks.metrics.multiple_choice import strict
from pave.types import Prediction, Question

FILES = {
    "train": "annotation/train_qa.json",
    "val": "annotation/val_qa.json",
    "train_prepared": "avqa_train_qa_instruct.json",
}
SPLITS = tuple(FILES)
EXPECTED = {"train": 40425, "val": 16910}
"""Questions of the published files."""
LETTERS = "ABCD"
HEAD = (
    "Select the best answer to the following multiple-choice question based on the video and the subtitles. "
    "Respond with only the letter (A, B, C, or D) of the correct option."
)


def load(split: str, root: Path) -> list[Question]:
    """All questions of a split; the group is the question's type. Raises UserError."""
    file = _annotations.annotation("avqa", split, FILES, root)
    make = partial(_annotations.prepared, _video) if split == "train_prepared" else _question
    return _annotations.numbered(_annotations.records(file, _annotations.rows, make))


def _video(name: str) -> str:
    return f"video/{name.removesuffix('.mp4')}.mp4"


def _question(raw: Any) -> Iterable[Question]:
    options = _annotations.texts(raw, "multi_choice")
    answer = _annotations.field(raw, "answer", int)
    if len(options) != len(LETTERS) or answer not in range(len(LETTERS)):
        raise ValueError(f"has {len(options)} options and answer {answer}, expected four and 0 to 3")
    lines = [_annotations.field(raw, "question_text", str), *(f"{name}.{text}" for name, text in zip(LETTERS, options))]
    yield Question(
        qid=_annotations.ident(raw, "id"),
        video=_video(_annotations.field(raw, "video_name", str)),
        text="\n".join(lines),
        answers=(LETTERS[answer],),
        group=_annotations.field(raw, "question_type", str),
    )


def prompt(question: Question) -> str:
    """Question and options in the published words; what was prepared has them already."""
    if question.text.startswith(HEAD):
        return question.text
    # Quirk: it speaks of subtitles, which there are none of; no space stands between an option's letter and text.
    return f"{HEAD}\n{question.text}\nAnswer with the option's letter from the given choices directly."


def target(question: Question) -> str:
    """The letter."""
    return question.answers[0]


def score(pairs: Iterable[tuple[Question, Prediction | None]]) -> dict[str, float]:
    """Accuracy over all questions and by type as published, and `strict`, by the letter that the answer states.

    A question without a prediction is wrong, and counted as missing.
    """
    pairs = list(pairs)
    said = [None if p is None else p.text for _, p in pairs]
    gold = [q.answers[0] for q, _ in pairs]
    kinds = [q.group for q, _ in pairs]
    # Quirk: right is what has the letter anywhere, so `Answer: B` is right for A as well.
    right = [text is not None and answer in text for text, answer in zip(said, gold)]
    read = [strict(text or "", LETTERS) for text in said]
    exact = [name == answer for name, answer in zip(read, gold)]
    return share("accuracy", right, kinds) | share("strict", exact, kinds) | counts(said, read)


def chance(questions: Sequence[Question]) -> dict[str, float]:
    """Guessing one of four."""
    kinds = dict.fromkeys(q.group for q in questions)
    names = [f"{name} {kind}".strip() for name in ("accuracy", "strict") for kind in ("", *kinds)]
    return dict.fromkeys(names, 1 / len(LETTERS))


def about(split: str) -> dict[str, str]:
    """What the numbers of a split are: rules, prompt, references."""
    return {
        "accuracy": "the letter of the right option stands anywhere in the answer, as the release scores",
        "strict": "the one letter that the answer states is right",
        "prompt": "the release's, with its words on subtitles",
        "references": "one letter; val is the test",
    }


def prepare(raw: Path, out: Path) -> list[str]:
    """Training records, and links to the VGGSound clips, found anywhere below `raw`, that the annotations name."""

    def train() -> list[str]:
        records = _official_files.instruct(load("train", raw), prompt, lambda video: video.stem)
        return [_official_files.write(out / FILES["train_prepared"], [r | {"id": int(r["id"])} for r in records])]

    def select(split: str) -> list[str]:
        names = sorted({Path(q.video).name for q in load(split, raw)})
        return [_official_files.link(clips, names, out / "video", out / f"avqa_missing_{split}.json")]

    clips = {file.name: file for file in raw.rglob("*.mp4")}
    return _official_files.every(
        raw, FILES, {"train": lambda: [*train(), *select("train")], "val": lambda: select("val")}
    )
