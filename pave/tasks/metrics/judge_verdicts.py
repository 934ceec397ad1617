"""A judge's opinion of free answers: what it is asked about them, and how its reply is read. Without a network."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pave.tasks.metrics.judge_prompts import QA, JudgePrompt
from pave.types import Prediction, Question

MAX_SCORE = 5
MAX_REPLY_CHARACTERS = 2000
"""A longer reply is not read; a reply in the right form has 30."""


class JudgeCase(NamedTuple):
    """One thing to judge."""

    kind: str
    """A key of JUDGE_PROMPTS."""
    qids: tuple[str, ...]
    """One question, or two with one answer in common; the verdict belongs to the first."""


class Verdict(NamedTuple):
    """What a reply says."""

    score: int
    """0 to 5"""
    yes: bool | None = None
    """Whether the answer is right; None where only a score is asked for."""


@dataclass(frozen=True)
class JudgedPrediction(Prediction):
    """An answer in a run that has been judged."""

    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    """By kind; a judgement that is missing or cannot be read is not in it."""


def are_judged(predictions: Iterable[Prediction | None]) -> bool:
    """Whether a judge has seen the answers of a run; missing answers need none."""
    return all(prediction is None or isinstance(prediction, JudgedPrediction) for prediction in predictions)


def verdict_of(prediction: Prediction | None, kind: str) -> Verdict | None:
    """The judge's verdict, if there is one that could be read."""
    return prediction.verdicts.get(kind) if isinstance(prediction, JudgedPrediction) else None


def messages(prompt: JudgePrompt, questions: Sequence[Question], answers: Sequence[str]) -> list[dict[str, str]]:
    """The judge's turns about one question and its answer, or about two."""
    values = {"answer": questions[0].answers[0]}
    for i, (question, answer) in enumerate(zip(questions, answers), start=1):
        number = str(i) if len(questions) > 1 else ""
        values |= {f"question{number}": question.text, f"pred{number}": answer}

    # In one go, so that an answer which holds a placeholder's name stays as it is.
    turns = [re.sub(r"\{(\w+)\}", lambda placeholder: values[placeholder[1]], text) for text in prompt]
    return [{"role": role, "content": text} for role, text in zip(("system", "user"), turns)]


def parse(reply: str, kind: str) -> Verdict | None:
    """The verdict of a reply that is a dictionary and nothing else, but for a code fence; None for any other."""
    members = _parse_dictionary(re.sub(r"^```\w*\s+(.*?)\s*```$", r"\1", reply.strip(), flags=re.DOTALL))
    score = _parse_score(members.get("score"))
    if score is None:
        return None
    if kind != QA:
        return Verdict(score)

    word = members.get("pred")
    if not isinstance(word, str) or not re.search("yes|no", word.lower()):
        return None
    # Quirk: `yes` anywhere is yes, else `no` anywhere is no, as in `not yes` and in `unknown`.
    return Verdict(score, "yes" in word.lower())


def _parse_dictionary(text: str) -> dict[object, object]:
    """A dictionary in the form of JSON or Python, never evaluated; an empty one for anything else."""
    if len(text) > MAX_REPLY_CHARACTERS:
        return {}
    for parse_text in (json.loads, ast.literal_eval):
        try:
            value = parse_text(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
        return value if isinstance(value, dict) else {}
    return {}


def _parse_score(value: object) -> int | None:
    """0 to 5; text counts where it is a number."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    # Quirk: cut off, not rounded: 4.8, which the published example shows, is 4.
    return int(number) if 0 <= number <= MAX_SCORE else None
