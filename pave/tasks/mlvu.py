"""MLVU: multiple choice about videos of three minutes to nine hours: seven tasks with four options, or nine with six.

Below root, one of

* as on the hub (dev, test): json/1_plotQA.json to json/7_topic_reasoning.json with video/<n_task>/<video>, and
  test-ground-truth/test_mcq_gt.json with video/<video>. One made-up record:

    {"video": "ego_900.mp4", "duration": 412.3, "question": "What did I pick up first?",
     "candidates": ["a pan", "a cup", "a lid", "a towel"], "answer": "a cup", "question_type": "ego"}

* as packed for lmms-eval (dev_packed, test_packed): mlvu_dev.parquet or mlvu_test.parquet, or the .json beside it, with
  <video_name>. The question has the options in it:

    {"video_name": "ego_900.mp4", "duration": 412.3, "question": "What did I pick up first?\\n(A) a pan\\n...",
     "candidates": ["a pan", "a cup", "a lid", "a towel"], "answer": "B", "task_type": "ego", "question_id": "ER_900"}

The two generation tasks of dev (sub-scene captioning, summary), which a language model of others judges, are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from operator import eq
from pathlib import Path

from pave.tasks import base
from pave.tasks._annotations import Record, field, has_field, id_field, read_question_files, read_questions, texts_field
from pave.tasks._multiple_choice import guessing_scores
from pave.tasks.metrics.aggregate import count_answers, macro_mean, mean
from pave.tasks.metrics.multiple_choice import extract_mcq_answer, letter_before_bracket, stated_letter
from pave.types import Question

DEV_TASKS = ("plotQA", "needle", "ego", "count", "order", "anomaly_reco", "topic_reasoning")
TASK_ALIASES = {"findNeedle": "needle", "needleQA": "needle"}
LETTERS = "ABCDEF"
NO_LETTER = "@"
"""In place of the right letter where the answer is not among the candidates, as in two questions of dev."""


class Task(base.Task):
    files = {
        "dev": "json/1_plotQA.json",
        "test": "test-ground-truth/test_mcq_gt.json",
        "dev_packed": "mlvu_dev.parquet",
        "test_packed": "mlvu_test.parquet",
    }
    splits = tuple(files)
    expected_counts = {"dev": 2175, "dev_packed": 2175}
    """539, 355, 352, 206, 259, 200 and 264 multiple-choice questions of the tasks of dev."""

    def load(self, split: str, root: Path) -> list[Question]:
        """Multiple-choice questions; the group is the task. Raises UserError."""
        file = self.annotation_file(split, root)
        if split.endswith("_packed"):
            return read_questions(file, _parse_packed)
        if split == "test":
            return read_questions(file, partial(_parse_record, "video"))

        names = [f"{i}_{task}" for i, task in enumerate(DEV_TASKS, start=1)]
        return read_question_files(
            {root / f"json/{name}.json": partial(_parse_record, f"video/{name}") for name in names}
        )

    def prompt(self, question: Question) -> str:
        """The words of the official copy of lmms-eval, which later versions shorten by two line breaks."""
        return f"\n{question.text}\nOnly give the best option.\n\nBest option: ("

    def score(self, pairs: Iterable[base.Pair]) -> base.Scores:
        """Accuracy over all questions as officially scored, by the newer extractor (`mcq`), and `strict`.

        Each with its mean over the tasks (`macro`, the benchmark's M-Avg).
        """
        texts, references, tasks = base.columns(pairs)
        stated = [stated_letter(text or "", LETTERS) for text in texts]
        letters = {
            "accuracy": [letter_before_bracket(text or "") for text in texts],
            "accuracy_mcq": [extract_mcq_answer(text or "", LETTERS) for text in texts],
            "strict": stated,
        }

        scores: base.Scores = {}
        for name, chosen in letters.items():
            by_task = mean(name, list(map(eq, chosen, references)), tasks)
            scores |= by_task | macro_mean(name, by_task, sorted(set(tasks)))
        return scores | count_answers(texts, stated)

    def chance(self, questions: Sequence[Question]) -> base.Scores:
        """Guessing one of the options in the question."""
        counts = [max(sum(f"({letter})" in question.text for letter in LETTERS), 1) for question in questions]
        return guessing_scores(("accuracy", "accuracy_mcq", "strict"), counts)

    def describe(self, split: str) -> dict[str, str]:
        return {
            "accuracy": "what is before the first `)`, else the whole answer, is the letter (lmms-eval up to 0.7.1)",
            "accuracy_mcq": "extract_mcq_answer of lmms-eval from 0.7.2, with A to F where that has A to D",
            "strict": "the one letter that the answer states is right",
            "macro": "mean over the tasks, as the benchmark and lmms-eval average; officially over all questions",
            "prompt": "the official copy of lmms-eval",
            "references": "as given"
            if "packed" in split
            else "the letter of the last candidate that equals the answer",
        }


def _parse_record(folder: str, record: Record) -> Iterable[Question]:
    options = _options(record)
    answer = field(record, "answer", str)
    # Quirk: of equal candidates the last is right.
    letter = dict(zip(options, LETTERS)).get(answer, NO_LETTER)

    video, task = field(record, "video", str), _task_name(record, "question_type")
    option_lines = [f"({name}) {option}" for name, option in zip(LETTERS, options)]
    yield Question(
        qid=id_field(record, "question_id") if has_field(record, "question_id") else f"{task}/{Path(video).stem}",
        video=f"{folder}/{video}",
        text="\n".join([field(record, "question", str), *option_lines]),
        answers=(letter, answer),
        group=task,
    )


def _parse_packed(record: Record) -> Iterable[Question]:
    options, text = _options(record), field(record, "question", str)
    answer = field(record, "answer", str)
    letters = LETTERS[: len(options)]
    if answer not in tuple(letters):
        raise ValueError(f"has the answer '{answer}', expected one of {', '.join(letters)}")
    missing = [option for option in options if option not in text]
    if missing:
        raise ValueError(f"has a question without the option '{missing[0]:.40}', expected all of them in it")

    yield Question(
        qid=id_field(record, "question_id"),
        video=field(record, "video_name", str),
        text=text,
        answers=(answer, options[LETTERS.index(answer)]),
        group=_task_name(record, "task_type"),
    )


def _options(record: Record) -> tuple[str, ...]:
    options = texts_field(record, "candidates")
    if len(options) > len(LETTERS):
        raise ValueError(f"has {len(options)} candidates, expected at most {len(LETTERS)}")
    return options


def _task_name(record: Record, name: str) -> str:
    task = field(record, name, str)
    return TASK_ALIASES.get(task, task)
