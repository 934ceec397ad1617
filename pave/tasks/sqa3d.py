"""SQA3D: questions about a ScanNet scene to someone who stands in it.

Below root, a folder scannet/<scene_id> of frames named by number (0.jpg, 1.jpg, ...) for each scene, and one of

* ScanQA_format/SQA_{train,val,test}.json, as in the authors' ScanQA_format.zip, used by the official code (train, ...)
* balanced/v1_balanced_{questions,sqa_annotations}_{train,val,test}_scannetv2.json, as in sqa_task.zip (train_task, ...)
* sqa3d_train_instruct.json and llava3d_sqa3d_test_question.json, as `pave prepare` writes them (train_prepared, ...)

One made-up record of the first:

    {"scene_id": "scene9999_00", "situation": "I am sitting on the bed.", "question": "Which side is the door on?",
     "answers": ["left"], "question_id": 220602999999, "object_ids": [], "object_names": [],
     "position": [0.1, 0.2, 0, 0, 0, 0.5, 0.9]}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

from pave.tasks import base
from pave.tasks._annotations import (
    Record,
    field,
    id_field,
    list_under,
    prepared_question,
    read_questions,
    read_records,
    texts_field,
)
from pave.tasks._official_files import prepare_splits, write_json, write_training_records
from pave.tasks.metrics.aggregate import GROUP_SEPARATOR
from pave.tasks.metrics.exact_match import clean_answer, scene_scores
from pave.types import Question

PARTS = ("train", "val", "test")
TASK_FILE = "balanced/v1_balanced_{}_{}_scannetv2.json"
FILES = {
    **{part: f"ScanQA_format/SQA_{part}.json" for part in PARTS},
    **{f"{part}_task": TASK_FILE.format("questions", part) for part in PARTS},
    "train_prepared": "sqa3d_train_instruct.json",
    "test_prepared": "llava3d_sqa3d_test_question.json",
}
COUNTS = {"train": 26623, "val": 3261, "test": 3519}
FIRST_WORDS = ("What", "Is", "How", "Can", "Which")


class Task(base.Task):
    files = FILES
    splits = tuple(FILES)
    expected_counts = {**COUNTS, **{f"{part}_task": COUNTS[part] for part in PARTS}, "test_prepared": COUNTS["test"]}
    prepares = True

    def load(self, split: str, root: Path) -> list[Question]:
        """Questions of a split; the groups are the first word, and the official number of that. Raises UserError."""
        file = self.annotation_file(split, root)
        if split.endswith("_task"):
            answer_file = root / TASK_FILE.format("sqa_annotations", split.removesuffix("_task"))
            answers = dict(read_records(answer_file, _parse_task_answer, list_under("annotations")))
            return read_questions(file, partial(_parse_task_question, answers), list_under("questions"))
        if split == "train_prepared":
            return read_questions(file, partial(prepared_question, "scannet/{}".format))
        return read_questions(file, _parse_prepared_test if split == "test_prepared" else _parse_record)

    def score(self, pairs: Iterable[base.Pair]) -> base.Scores:
        """Exact match with the first answer, over all questions and by first word."""
        texts, references, groups = base.columns(pairs)
        cleaned = [
            ((clean_answer(reference),), None if text is None else clean_answer(text))
            for text, reference in zip(texts, references)
        ]
        return scene_scores(cleaned, groups)

    def describe(self, split: str) -> dict[str, str]:
        return {
            "EM": "cleaned prediction equals the cleaned first answer",
            "EM_refined": "or one contains the other; an empty answer is right, see empty",
            "types": "What to Other as LEO counts; type0 to type5 as officially numbered, by the first word as it is",
            "prompt": "situation and question alone; the official code asks for no short answer",
            "references": "the first answer of a question",
        }

    def prepare(self, raw: Path, out: Path) -> list[str]:
        """Write training records of the first answers, and the questions and answers of the test with their types."""

        def prepare_test() -> list[str]:
            questions, answers = [], []
            for question in self.load("test", raw):
                scene, number = Path(question.video).name, int(question.group[-1])
                row = {"question_id": question.qid.split("#")[0], "scene_id": scene, "text": question.text}
                questions.append({**row, "answers": list(question.answers), "video": scene, "type": number})
                answers.append({**row, "text": question.answers[0], "video": scene, "type": number})
            return [
                write_json(out / self.files["test_prepared"], questions),
                write_json(out / "llava3d_sqa3d_test_answer.json", answers),
            ]

        train = partial(write_training_records, self, "train", raw, out, lambda video: video.name)
        return prepare_splits(raw, self.files, {"train": train, "test": prepare_test})


def _parse_task_answer(record: Record) -> Iterable[tuple[str, str]]:
    answers = [field(answer, "answer", str) for answer in field(record, "answers", list)]
    if not answers:
        raise ValueError("has no answer")
    yield id_field(record, "question_id"), answers[0]


def _parse_task_question(answers: Mapping[str, str], record: Record) -> Iterable[Question]:
    qid = id_field(record, "question_id")
    if qid not in answers:
        raise ValueError(f"is question {qid}, which the annotations do not answer")
    yield _with_situation(qid, record, (answers[qid],))


def _parse_record(record: Record) -> Iterable[Question]:
    yield _with_situation(id_field(record, "question_id"), record, texts_field(record, "answers"))


def _with_situation(qid: str, record: Record, answers: tuple[str, ...]) -> Question:
    question = field(record, "question", str)
    text = f"{field(record, 'situation', str)} {question}"
    return Question(qid, _video_path(record), text, answers, _groups(question))


def _parse_prepared_test(record: Record) -> Iterable[Question]:
    yield Question(
        qid=field(record, "question_id", str),
        video=_video_path(record),
        text=field(record, "text", str),
        answers=texts_field(record, "answers"),
        group=f"type{field(record, 'type', int)}",
    )


def _video_path(record: Record) -> str:
    return f"scannet/{field(record, 'scene_id', str)}"


def _groups(question: str) -> str:
    """First word of a question, as LEO and the literature count, and the official number of it."""
    lower = question.lstrip().lower()
    kind = next((word for word in FIRST_WORDS if lower.startswith(word.lower())), "Other")
    # Quirk: the official code takes the first word as it stands, so `What's` and `what` are of the last type.
    words = question.split()
    number = FIRST_WORDS.index(words[0]) if words and words[0] in FIRST_WORDS else len(FIRST_WORDS)
    return f"{kind}{GROUP_SEPARATOR}type{number}"
