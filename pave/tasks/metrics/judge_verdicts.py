"""A judge's opinion of free answers: what it is asked about them, and how its reply is read. Without a network."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pave.tasks.metrics.judge_prompts import QA, Words
from pave.types import Prediction, Question

HIGHEST = 5
LONGEST = 2000
"""Characters of a reply that is read at all; the form that is asked for has 30."""


class Case(NamedTuple):
    """One thing to judge."""

    kind: str
    """A key of WORDS."""
    qids: tuple[str, ...]
    """One question, or two with one answer in common; the verdict belongs to the first."""


class Verdict(NamedTuple):
    """What a reply says."""

    score: int
    """0 to 5"""
    yes: bool | None = None
    """None where only a score is asked for."""


@dataclass(frozen=True)
class Judged(Prediction):
    """An answer in a run that has been judged."""

    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    """By kind; a judgement that is missing or cannot be read is not in it."""


def messages(words: Words, questions: Sequence[Question], said: Sequence[str]) -> list[dict[str, str]]:
    """The judge's turns about one question and what was said to it, or about two."""
    filled = {"answer": questions[0].answers[0]}
    for i, (question, text) in enumerate(zip(questions, said), start=1):
        number = str(i) if len(questions) > 1 else ""
        filled |= {f"question{number}": question.text, f"pred{number}": text}
    # In one go, so that an answer which holds a place's name stays as it is.
    turns = [re.sub(r"\{(\w+)\}", lambda place: filled[place[1]], text) for text in words]
    return [{"role": role, "content": text} for role, text in zip(("system", "user"), turns)]


def parse(reply: str, kind: str) -> Verdict | None:
    """The verdict of a reply that is a dictionary and nothing else, but for a code fence; None for any other."""
    said = _dictionary(re.sub(r"^```\w*\s+(.*?)\s*```$", r"\1", reply.strip(), flags=re.DOTALL))
    score = _score(said.get("score"))
    if score is None or kind != QA:
        return None if score is None else Verdict(score)
    word = said.get("pred")
    if not isinstance(word, str) or not re.search("yes|no", word.lower()):
        return None
    # Quirk: `yes` anywhere is yes, else `no` anywhere is no, as in `not yes` and in `unknown`.
    return Verdict(score, "yes" in word.lower())


def _dictionary(text: str) -> dict[object, object]:
    """A dictionary in the form of JSON or Python, never evaluated; an empty one for anything else."""
    if len(text) > LONGEST:
        return {}
    for read in (json.loads, ast.literal_eval):
        try:
            said = read(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
        return said if isinstance(said, dict) else {}
    return {}


def _score(value: object) -> int | None:
    """0 to 5; text counts where it is a number."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    # Quirk: cut off, not rounded: 4.8, which the published example shows, is 4.
    return int(number) if 0 <= number <= HIGHEST else None
