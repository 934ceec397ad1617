"""AVQA: multiple choice about VGGSound clips. There is no public test set: the split val is the test.

Below root, as in the folder data of the authors' repository: annotation/train_qa.json, annotation/val_qa.json and
video/<video_name>.mp4; or the official avqa_train_qa_instruct.json (train_prepared). One made-up record:

    {"id": 41, "video_name": "Zz0_ab-9QxY_000030", "video_id": 77, "question_text": "What is making the sound?",
     "multi_choice": ["kettle", "drum", "train", "dog"], "answer": 2, "question_relation": "Both",
     "question_type": "Which"}
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from operator import eq
from pathlib import Path

from pave.tasks import base
from pave.tasks._annotations import Record, field, id_field, prepared_question, read_questions, texts_field
from pave.tasks._multiple_choice import LETTER_INSTRUCTION, SELECT_INSTRUCTION, guessing_scores
from pave.tasks._official_files import link_videos, prepare_splits, write_training_records
from pave.tasks.metrics.aggregate import count_answers, mean
from pave.tasks.metrics.multiple_choice import stated_letter
from pave.types import Question

LETTERS = "ABCD"


class Task(base.Task):
    files = {
        "train": "annotation/train_qa.json",
        "val": "annotation/val_qa.json",
        "train_prepared": "avqa_train_qa_instruct.json",
    }
    splits = tuple(files)
    expected_counts = {"train": 40425, "val": 16910}
    prepares = True

    def load(self, split: str, root: Path) -> list[Question]:
        """Questions of a split; the group is the question's type. Raises UserError."""
        parse_record = partial(prepared_question, _video_path) if split == "train_prepared" else _parse_record
        return read_questions(self.annotation_file(split, root), parse_record)

    def prompt(self, question: Question) -> str:
        """Question and options in the published words, which a prepared question has already."""
        if question.text.startswith(SELECT_INSTRUCTION):
            return question.text
        # Quirk: it speaks of subtitles, which there are none of; no space stands between an option's letter and text.
        return f"{SELECT_INSTRUCTION}\n{question.text}\n{LETTER_INSTRUCTION}"

    def score(self, pairs: Iterable[base.Pair]) -> base.Scores:
        """Accuracy over all questions and by type as published, and `strict`, by the letter that the answer states."""
        texts, references, groups = base.columns(pairs)
        # Quirk: right is what has the letter anywhere, so `Answer: B` is right for A as well.
        contains = [text is not None and letter in text for text, letter in zip(texts, references)]
        stated = [stated_letter(text or "", LETTERS) for text in texts]
        return {
            **mean("accuracy", contains, groups),
            **mean("strict", list(map(eq, stated, references)), groups),
            **count_answers(texts, stated),
        }

    def chance(self, questions: Sequence[Question]) -> base.Scores:
        """Guessing one of four, for every type."""
        kinds = dict.fromkeys(question.group for question in questions)
        names = [f"{name} {kind}".strip() for name in ("accuracy", "strict") for kind in ("", *kinds)]
        return guessing_scores(names, [len(LETTERS)])

    def describe(self, split: str) -> dict[str, str]:
        return {
            "accuracy": "the letter of the right option stands anywhere in the answer, as the official code scores",
            "strict": "the one letter that the answer states is right",
            "prompt": "the official one, with its words on subtitles",
            "references": "one letter; val is the test",
        }

    def prepare(self, raw: Path, out: Path) -> list[str]:
        """Write training records, and link the VGGSound clips, anywhere below `raw`, that the annotations name."""
        clips = {file.name: file for file in raw.rglob("*.mp4")}

        def link(split: str) -> list[str]:
            names = sorted({Path(question.video).name for question in self.load(split, raw)})
            return [link_videos(clips, names, out / "video", out / f"avqa_missing_{split}.json")]

        def prepare_train() -> list[str]:
            lines = write_training_records(self, "train", raw, out, lambda video: video.stem, numeric_ids=True)
            return lines + link("train")

        return prepare_splits(raw, self.files, {"train": prepare_train, "val": partial(link, "val")})


def _video_path(name: str) -> str:
    return f"video/{name.removesuffix('.mp4')}.mp4"


def _parse_record(record: Record) -> Iterable[Question]:
    options = texts_field(record, "multi_choice")
    answer = field(record, "answer", int)
    if len(options) != len(LETTERS) or answer not in range(len(LETTERS)):
        raise ValueError(f"has {len(options)} options and answer {answer}, expected four and 0 to 3")

    option_lines = [f"{letter}.{option}" for letter, option in zip(LETTERS, options)]
    yield Question(
        qid=id_field(record, "id"),
        video=_video_path(field(record, "video_name", str)),
        text="\n".join([field(record, "question_text", str), *option_lines]),
        answers=(LETTERS[answer],),
        group=field(record, "question_type", str),
    )
