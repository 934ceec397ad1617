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
from pathlib import Path
from typing import Any

from pave.tasks import _annotations
from pave.tasks.metrics import multiple_choice
from pave.tasks.metrics.exact_match import counts, macro, share
from pave.types import Prediction, Question

DEV = ("plotQA", "needle", "ego", "count", "order", "anomaly_reco", "topic_reasoning")
FILES = {
    "dev": "json/1_plotQA.json",
    "test": "test-ground-truth/test_mcq_gt.json",
    "dev_packed": "mlvu_dev.parquet",
    "test_packed": "mlvu_test.parquet",
}
SPLITS = tuple(FILES)
EXPECTED = {"dev": 2175, "dev_packed": 2175}
"""Multiple-choice questions; 539, 355, 352, 206, 259, 200 and 264 of the tasks of dev."""
NAMES = {"findNeedle": "needle", "needleQA": "needle"}
"""Other names of the same task."""
LETTERS = "ABCDEF"
NOBODY = "@"
"""Stands for the right letter where the answer is not among the candidates, as in two questions of dev."""


def load(split: str, root: Path) -> list[Question]:
    """All multiple-choice questions; the group is the task. Raises UserError."""
    file = _annotations.annotation("mlvu", split, FILES, root)
    if split.endswith("_packed"):
        return _annotations.numbered(_annotations.records(file, _annotations.rows, _packed))
    if split == "test":
        return _annotations.numbered(_annotations.records(file, _annotations.rows, partial(_question, "video")))
    found: list[Question] = []
    for i, name in enumerate(DEV, start=1):
        found += _annotations.records(
            root / f"json/{i}_{name}.json", _annotations.rows, partial(_question, f"video/{i}_{name}")
        )
    return _annotations.numbered(found)


def _question(folder: str, raw: Any) -> Iterable[Question]:
    options = _options(raw)
    answer = _annotations.field(raw, "answer", str)
    # Quirk: of equal candidates the last is right.
    letter = next((name for name, text in zip(LETTERS[::-1], _padded(options)[::-1]) if text == answer), NOBODY)
    video, task = _annotations.field(raw, "video", str), _annotations.field(raw, "question_type", str)
    lines = [_annotations.field(raw, "question", str), *(f"({name}) {text}" for name, text in zip(LETTERS, options))]
    qid = (
        _annotations.ident(raw, "question_id")
        if "question_id" in raw
        else f"{NAMES.get(task, task)}/{Path(video).stem}"
    )
    yield Question(qid, f"{folder}/{video}", "\n".join(lines), (letter, answer), NAMES.get(task, task))


def _padded(options: Sequence[str]) -> list[str | None]:
    return [*options, *[None] * (len(LETTERS) - len(options))]


def _packed(raw: Any) -> Iterable[Question]:
    options, text = _options(raw), _annotations.field(raw, "question", str)
    answer, task = _annotations.field(raw, "answer", str), _annotations.field(raw, "task_type", str)
    if answer not in tuple(LETTERS[: len(options)]):
        raise ValueError(f"has the answer '{answer}', expected one of {', '.join(LETTERS[: len(options)])}")
    lost = [option for option in options if option not in text]
    if lost:
        raise ValueError(f"has a question without the option '{lost[0]:.40}', expected all of them in it")
    answers = (answer, options[LETTERS.index(answer)])
    yield Question(
        _annotations.ident(raw, "question_id"),
        _annotations.field(raw, "video_name", str),
        text,
        answers,
        NAMES.get(task, task),
    )


def _options(raw: Any) -> tuple[str, ...]:
    options = _annotations.texts(raw, "candidates")
    if len(options) > len(LETTERS):
        raise ValueError(f"has {len(options)} candidates, expected at most {len(LETTERS)}")
    return options


def prompt(question: Question) -> str:
    """The words of the release's copy of lmms-eval, which later versions shorten by two line breaks."""
    return f"\n{question.text}\nOnly give the best option.\n\nBest option: ("


def target(question: Question) -> str:
    """The letter."""
    return question.answers[0]


def score(pairs: Iterable[tuple[Question, Prediction | None]]) -> dict[str, float]:
    """Accuracy over all questions as the release scores, by the newer extractor (`mcq`), and `strict`, with their means
    over the tasks (`macro`, the benchmark's M-Avg). A question without a prediction is wrong, and counted as missing.
    """
    pairs = list(pairs)
    said = [None if p is None else p.text for _, p in pairs]
    gold = [q.answers[0] for q, _ in pairs]
    tasks = [q.group for q, _ in pairs]
    names = sorted(set(tasks))
    read = [multiple_choice.strict(text or "", LETTERS) for text in said]
    extracted = {
        "accuracy": [multiple_choice.mlvu(text or "") for text in said],
        "accuracy_mcq": [multiple_choice.mcq(text or "", LETTERS) for text in said],
        "strict": read,
    }
    found: dict[str, float] = {}
    for name, letters in extracted.items():
        shares = share(name, [a == b for a, b in zip(letters, gold)], tasks)
        found |= shares | macro(name, shares, names)
    return found | counts(said, read)


def chance(questions: Sequence[Question]) -> dict[str, float]:
    """Guessing one of the options that there are."""
    guesses = [1 / max(sum(f"({name})" in question.text for name in LETTERS), 1) for question in questions]
    return dict.fromkeys(("accuracy", "accuracy_mcq", "strict"), sum(guesses) / len(guesses)) if guesses else {}


def about(split: str) -> dict[str, str]:
    """What the numbers of a split are: rules, prompt, references."""
    return {
        "accuracy": "what stands before the first `)`, else the whole answer, is the letter (release, lmms-eval 0.7.1)",
        "accuracy_mcq": "extract_mcq_answer of lmms-eval from 0.7.2, with A to F where that has A to D",
        "strict": "the one letter that the answer states is right",
        "macro": "mean over the tasks, as the benchmark and lmms-eval average; the release averages over questions",
        "prompt": "the release's copy of lmms-eval",
        "references": "as given" if "packed" in split else "the letter of the last candidate that equals the answer",
    }
