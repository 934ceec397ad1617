"""ScanQA: questions about a ScanNet scene. The tests have no public answers: the split val is the test.

Below root: qa/ScanQA_v1.0_{train,val}.json, and a folder scannet/<scene_id> of frames named by number (0.jpg, 1.jpg,
...) for each scene; or scanqa_train_instruct.json and llava3d_scanqa_val_question.json, as `pave prepare` writes them
(train_prepared, val_prepared). One made-up record:

    {"scene_id": "scene9999_00", "object_ids": [4], "object_names": ["chair"], "question_id": "val-scene9999-0",
     "question": "What color is the chair?", "answers": ["brown", "dark brown"]}
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from pave.tasks import base
from pave.tasks._annotations import Record, field, id_field, prepared_question, read_questions, texts_field
from pave.tasks._official_files import prepare_splits, write_json, write_training_records
from pave.tasks.metrics import captions
from pave.tasks.metrics.aggregate import mean
from pave.tasks.metrics.exact_match import clean_answer, leo_match, scene_scores
from pave.types import Question

QUESTION_CLASSES = {
    "Where": "Place",
    "How many": "Number",
    "What color": "Color",
    "What is the color": "Color",
    "What shape": "Object nature",
    "What type": "Object nature",
    "What kind": "Object nature",
    "What is": "Object",
}
"""The authors' classes of questions: the first words of these, in their order, that a question has anywhere."""


class Task(base.Task):
    files = {
        "train": "qa/ScanQA_v1.0_train.json",
        "val": "qa/ScanQA_v1.0_val.json",
        "train_prepared": "scanqa_train_instruct.json",
        "val_prepared": "llava3d_scanqa_val_question.json",
    }
    splits = tuple(files)
    expected_counts = {"train": 25563, "val": 4675, "val_prepared": 4675}
    prepares = True

    def load(self, split: str, root: Path) -> list[Question]:
        """Questions of a split; the group is the class that the authors give a question. Raises UserError."""
        file = self.annotation_file(split, root)
        if split == "train_prepared":
            return read_questions(file, partial(prepared_question, "scannet/{}".format))
        text_field = "text" if split == "val_prepared" else "question"
        return read_questions(file, partial(_parse_record, text_field))

    def score(self, pairs: Iterable[base.Pair]) -> base.Scores:
        """Exact match, and caption metrics of the cleaned texts, as fractions (papers print 100 times them).

        EM_leo stops at the first reference that is near, as LEO does; EM_raw compares texts as they are, as the authors
        do.
        """
        pairs = list(pairs)
        return {**self.score_each(pairs), **captions.score(_clean(pairs))}

    def score_each(self, pairs: Iterable[base.Pair]) -> base.Scores:
        """The metrics of exact match."""
        pairs = list(pairs)
        cleaned = _clean(pairs)
        leo = [text is not None and leo_match(text, references) for references, text in cleaned]
        raw = [prediction is not None and prediction.text in question.answers for question, prediction in pairs]
        return {
            **scene_scores(cleaned, [question.group for question, _ in pairs]),
            **mean("EM_leo", leo),
            **mean("EM_raw", raw),
        }

    def describe(self, split: str) -> dict[str, str]:
        return {
            "EM": "cleaned prediction equals any cleaned reference (official); EM_leo: LEO's order; EM_raw: uncleaned",
            "EM_refined": "or one contains the other; an empty answer is right, see empty",
            "captions": "pycocoevalcap's rules on cleaned texts",
            "prompt": "the question alone; the official code asks for no short answer",
            "references": "all answers of a question; val is the test",
        }

    def prepare(self, raw: Path, out: Path) -> list[str]:
        """Write training records of the first answers, and the numbered questions and answers of the test."""

        def prepare_val() -> list[str]:
            questions, answers = [], []
            for number, question in enumerate(self.load("val", raw), start=1):
                scene, references = Path(question.video).name, list(question.answers)
                row = {"question_id": f"{number:06}", "scene_id": scene}
                questions.append({**row, "text": question.text, "answers": references, "video": scene})
                answers.append({**row, "text": references, "video": scene})
            return [
                write_json(out / self.files["val_prepared"], questions),
                write_json(out / "llava3d_scanqa_val_answer.json", answers),
            ]

        train = partial(write_training_records, self, "train", raw, out, lambda video: video.name)
        return prepare_splits(raw, self.files, {"train": train, "val": prepare_val})


def _parse_record(text_field: str, record: Record) -> Iterable[Question]:
    qid, text = id_field(record, "question_id"), field(record, text_field, str)
    yield Question(
        qid=qid,
        video=f"scannet/{field(record, 'scene_id', str)}",
        text=text,
        answers=texts_field(record, "answers"),
        group=next((name for words, name in QUESTION_CLASSES.items() if words in text), "Other"),
    )


def _clean(pairs: Iterable[base.Pair]) -> list[tuple[tuple[str, ...], str | None]]:
    return [
        (
            tuple(map(clean_answer, question.answers)),
            None if prediction is None else clean_answer(prediction.text),
        )
        for question, prediction in pairs
    ]
