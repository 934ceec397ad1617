"""How tests evaluate, and what a run left."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from pave import answer, score
from pave.evaluate import Options
from pave.model import Pave

OPTIONS = Options(split="train", workers=0, batch=4, max_new_tokens=6)
ASKED = 20


def results(out: Path) -> tuple[str, str]:
    return (out / score.PREDICTIONS).read_text(), (out / score.METRICS).read_text()


def other(options: Options = OPTIONS, **changes: Any) -> Options:
    return dataclasses.replace(options, **changes)


def count(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many questions each call answers from now on."""
    calls: list[int] = []
    answers = answer.answers

    def counted(model: Pave, asked: Any, *rest: Any) -> Any:
        calls.append(sum(len(a.prompts) for a in asked))
        return answers(model, asked, *rest)

    monkeypatch.setattr(answer, "answers", counted)
    return calls
