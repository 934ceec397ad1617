"""The contract of a task: questions, prompts, targets and scores. Each module of pave/tasks has one class `Task`."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, NoReturn

from pave.tasks.metrics.aggregate import count_answers, mean
from pave.tasks.metrics.judge_prompts import QA
from pave.tasks.metrics.judge_verdicts import JudgeCase, are_judged, verdict_of
from pave.types import Prediction, Question, UserError
from pave.utils import registry

Pair = tuple[Question, Prediction | None]
"""A question with its answer; None where the model gave none."""
Scores = dict[str, float]
"""Numbers by the name of the metric."""


class Task(ABC):
    """One data set; the same object serves training and evaluation. Never imports torch."""

    splits: ClassVar[tuple[str, ...]]
    """Names that `load` knows."""
    files: ClassVar[Mapping[str, str]] = {}
    """Annotation file of each split below root, where a split has one file."""
    expected_counts: ClassVar[Mapping[str, int]] = {}
    """Number of questions of a split, where it is known; `pave doctor` compares."""
    prepares: ClassVar[bool] = False
    """Whether `pave prepare` converts raw files of this data set."""
    needs_judge: ClassVar[bool] = False
    """Whether `pave judge` must judge the answers before `score` has more than counts."""

    @property
    def name(self) -> str:
        """Name of the module."""
        return type(self).__module__.rpartition(".")[2]

    @abstractmethod
    def load(self, split: str, root: Path) -> list[Question]:
        """Questions of a split, with unique ids, in a fixed order; opens no video.

        `Question.video` is a path below root. Raises UserError naming file and record.
        """

    def prompt(self, question: Question) -> str:
        """What the model is asked, without chat template and visual tokens; by default the question's text."""
        return question.text

    def target(self, question: Question) -> str:
        """What the model learns to answer; by default the first answer."""
        return question.answers[0]

    @abstractmethod
    def score(self, pairs: Iterable[Pair]) -> Scores:
        """Scores over all questions; one without an answer counts as wrong."""

    def score_each(self, pairs: Iterable[Pair]) -> Scores:
        """The part of `score` that is a mean over questions, for `pave compare`; other metrics need a whole corpus."""
        return self.score(pairs)

    def chance(self, questions: Sequence[Question]) -> Scores:
        """What guessing reaches, under names of `score`; empty where there is no such thing."""
        return {}

    def describe(self, split: str) -> dict[str, str]:
        """Metrics, `prompt` and `references` in words, for metrics.json."""
        return {}

    def judge_cases(self, questions: Sequence[Question]) -> list[JudgeCase]:
        """What a judge decides about the answers to these questions, for a task with `needs_judge`."""
        return []

    def prepare(self, raw: Path, out: Path) -> list[str]:
        """Convert raw files of the data set, for a task with `prepares`; lines to print. Raises UserError."""
        raise UserError(f"{self.name}: there is nothing to prepare; see the data set's page in doc/datasets")

    def check(self, split: str, root: Path) -> list[str]:
        """Lines about other files that are missing, such as subtitles, for `pave doctor`."""
        return []

    def check_split(self, split: str) -> None:
        """Raises UserError with the nearest name if there is no such split."""
        if split not in self.splits:
            raise UserError(f"{self.name} has no split named '{split}'; {registry.nearest(split, self.splits)}")

    def annotation_file(self, split: str, root: Path) -> Path:
        """Path of a split's annotations, from `files`. Raises UserError if there is no such split."""
        self.check_split(split)
        return root / self.files[split]


class TrainingOnlyTask(Task):
    """A data set that models only learn from: nothing published scores their answers."""

    splits = ("train",)

    def score(self, pairs: Iterable[Pair]) -> NoReturn:
        """Raises UserError."""
        raise UserError("this task is for training only and has no score; evaluate on a benchmark (`pave list tasks`)")


class OpenEndedTask(Task):
    """A benchmark of short free answers, each of which a judge calls right or wrong and gives 0 to 5."""

    needs_judge = True

    def score(self, pairs: Iterable[Pair]) -> Scores:
        """Share of right answers and mean score; without a verdict an answer is wrong and gets 0.

        `_judged` are the same over readable verdicts alone. Only counts for answers that no judge has seen.
        """
        pairs = list(pairs)
        texts, _, groups = columns(pairs)
        predictions = [prediction for _, prediction in pairs]
        if not are_judged(predictions):
            return count_answers(texts)

        verdicts = [verdict_of(prediction, QA) for prediction in predictions]
        readable = [verdict for verdict in verdicts if verdict]
        return {
            **mean("accuracy", [bool(verdict and verdict.yes) for verdict in verdicts], groups),
            **mean("score", [verdict.score if verdict else 0 for verdict in verdicts]),
            **mean("accuracy_judged", [bool(verdict.yes) for verdict in readable]),
            **mean("score_judged", [verdict.score for verdict in readable]),
            **count_answers(texts),
        }

    def judge_cases(self, questions: Sequence[Question]) -> list[JudgeCase]:
        """Every answer on its own."""
        return [JudgeCase(QA, (question.qid,)) for question in questions]

    def describe(self, split: str) -> dict[str, str]:
        """Metrics, prompt and references in words."""
        return {
            "accuracy": "share of answers that a judge calls right; no verdict counts as no",
            "score": "mean of the judge's 0 to 5, cut to whole numbers; no verdict counts as 0",
            "judged": "the same over readable verdicts only, as Video-ChatGPT's evaluation averages",
            "prompt": "the question alone",
            "references": "the one answer",
        }


def columns(pairs: Iterable[Pair]) -> tuple[list[str | None], list[str], list[str]]:
    """Texts of the answers, None for a missing one; first references; groups: columns of equal length."""
    pairs = list(pairs)
    texts = [None if prediction is None else prediction.text for _, prediction in pairs]
    return texts, [question.answers[0] for question, _ in pairs], [question.group for question, _ in pairs]


def get_task(name: str) -> Task:
    """Make the task of a module of pave/tasks, or of a user's own module by its dotted name.

    Raises UserError, with the nearest name where there is no such module, or where it has no class `Task`.
    """
    task_class = vars(registry.load("tasks", name)).get("Task")
    if not (isinstance(task_class, type) and issubclass(task_class, Task)) or inspect.isabstract(task_class):
        raise UserError(f"{name}: has no class Task that derives from pave.tasks.base; see doc/extend/task.md")
    return task_class()
