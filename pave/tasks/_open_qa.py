"""What benchmarks with free answers share: their files, and scores by a judge's verdicts (pave/evaluation/judge.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pave.tasks import _annotations
from pave.tasks.metrics.exact_match import counts, share
from pave.tasks.metrics.judge_prompts import QA
from pave.tasks.metrics.judge_verdicts import Case, Judged, Verdict
from pave.types import Prediction, Question, UserError

SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".gif")
"""Of videos; of two files with one stem the first of these."""
FIRST = ("what", "who", "how", "when", "where")
"""Words that questions of these data sets begin with, by which they are grouped."""
Place = Callable[[str], str]
"""From a video's name to its path below root."""


def place(root: Path, folder: str, suffix: str) -> Place:
    """Where videos are: with the suffix of the file that is there, `suffix` for one that is missing."""
    files = [f for f in (root / folder).glob("*") if f.suffix.lower() in SUFFIXES]
    files.sort(key=lambda f: SUFFIXES.index(f.suffix.lower()), reverse=True)
    there = {f.stem: f.name for f in files}

    def path(name: str) -> str:
        named = Path(name).suffix.lower() in SUFFIXES
        return f"{folder}/{name if named else there.get(name, name + suffix)}"

    return path


def first_word(record: Any) -> str:
    """The group of a question."""
    word = _annotations.field(record, "question", str).lower().partition(" ")[0]
    return word if word in FIRST else ""


def paired(questions: Path, answers: Path, where: Place, group: Callable[[Any], str] | None = None) -> list[Question]:
    """From a list of {video_name, question, question_id} and one of {answer} in the same order, with ids or without.

    `group` is of the answer's record; without one it is the question's first word. Raises UserError.
    """

    def question(raw: Any) -> Iterable[Question]:
        text, name = _annotations.field(raw, "question", str), _annotations.ident(raw, "video_name")
        yield Question(_annotations.ident(raw, "question_id"), where(name), text, (), first_word(raw))

    def answer(raw: Any) -> Iterable[tuple[str, str, str]]:
        text = _annotations.ident(raw, "answer")
        yield text, _annotations.ident(raw, "question_id") if "question_id" in raw else "", group(raw) if group else ""

    asked, right = (
        _annotations.records(questions, _annotations.rows, question),
        _annotations.records(answers, _annotations.rows, answer),
    )
    other = [i for i, (q, (_, qid, _)) in enumerate(zip(asked, right), start=1) if qid not in ("", q.qid)]
    if other or len(asked) != len(right):
        what = f"record {other[0]} is about another question" if other else f"{len(right)} answers to {len(asked)}"
        raise UserError(f"{answers}: {what}, compared with {questions.name}; download both again")
    return _annotations.numbered(
        [replace(q, answers=(text,), group=kind if group else q.group) for q, (text, _, kind) in zip(asked, right)]
    )


def single(file: Path, where: Place, name: Callable[[str], str]) -> list[Question]:
    """From one list of {question, answer, id, video_id}; `name` makes a video's name of its number.

    A text as `video_name` or `video` goes before the number. Raises UserError.
    """

    def question(raw: Any) -> Iterable[Question]:
        named = next((key for key in ("video_name", "video") if key in raw), None) if isinstance(raw, dict) else None
        video = _annotations.field(raw, named, str) if named else name(_annotations.ident(raw, "video_id"))
        qid = _annotations.ident(raw, "question_id" if "question_id" in raw else "id")
        answer = _annotations.ident(raw, "answer")
        yield Question(qid, where(video), _annotations.field(raw, "question", str), (answer,), first_word(raw))

    return _annotations.numbered(_annotations.records(file, _annotations.rows, question))


def prompt(question: Question) -> str:
    """The question as it stands: the published evaluations add nothing."""
    return question.text


def target(question: Question) -> str:
    """The answer."""
    return question.answers[0]


def cases(questions: Sequence[Question]) -> list[Case]:
    """What a judge decides: every answer, on its own."""
    return [Case(QA, (question.qid,)) for question in questions]


def is_judged(pairs: Iterable[tuple[Question, Prediction | None]]) -> bool:
    """Whether these are answers of a run that a judge has seen; answers that do not exist need none."""
    return all(p is None or isinstance(p, Judged) for _, p in pairs)


def verdict(prediction: Prediction | None, kind: str) -> Verdict | None:
    """The judge's, if there is one that could be read."""
    return prediction.verdicts.get(kind) if isinstance(prediction, Judged) else None


def mean(name: str, values: Sequence[float]) -> dict[str, float]:
    """By its name; of none, nothing."""
    return {name: sum(values) / len(values)} if values else {}


def score(pairs: Iterable[tuple[Question, Prediction | None]]) -> dict[str, float]:
    """Share of yes and mean score over all questions, where no verdict is a no and a 0, and over those judged.

    Only counts for answers that no judge has seen.
    """
    pairs = list(pairs)
    found: Mapping[str, float] = {}
    if is_judged(pairs):
        verdicts = [verdict(p, QA) for _, p in pairs]
        read = [v for v in verdicts if v]
        found = {
            **share("accuracy", [bool(v and v.yes) for v in verdicts], [q.group for q, _ in pairs]),
            **mean("score", [v.score if v else 0 for v in verdicts]),
            **share("accuracy_judged", [bool(v.yes) for v in read]),
            **mean("score_judged", [v.score for v in read]),
        }
    return {**found, **counts([None if p is None else p.text for _, p in pairs])}


def chance(questions: Sequence[Question]) -> dict[str, float]:
    """There is no such thing for free text."""
    return {}


def about(split: str) -> dict[str, str]:
    """What the numbers of a split are: rules, prompt, references."""
    return {
        "accuracy": "share of answers that a judge calls right; no verdict counts as no",
        "score": "mean of the judge's 0 to 5, cut to whole numbers; no verdict counts as 0",
        "judged": "the same over readable verdicts only, as Video-ChatGPT's evaluation averages",
        "prompt": "the question alone",
        "references": "the one answer",
    }
