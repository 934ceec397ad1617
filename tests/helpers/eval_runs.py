"""How tests evaluate, and what a run left."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from helpers.random_checkpoints import save_trained
from helpers.tiny_model import TinySetup, make_config
from pave.checkpoints import load
from pave.config import Config
from pave.evaluation import evaluate, run_folder
from pave.evaluation.evaluate import Options
from pave.inference import generation
from pave.models.patched_model import Pave

OPTIONS = Options(split="train", workers=0, batch=4, max_new_tokens=6)

ASKED = 20


def results(out: Path) -> tuple[str, str]:
    return (out / run_folder.PREDICTIONS).read_text(), (out / run_folder.METRICS).read_text()


def other(options: Options = OPTIONS, **changes: Any) -> Options:
    return dataclasses.replace(options, **changes)


def count(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many questions each call answers from now on."""
    calls: list[int] = []
    answers = generation.answers

    def counted(model: Pave, asked: Any, *rest: Any) -> Any:
        calls.append(sum(len(a.prompts) for a in asked))
        return answers(model, asked, *rest)

    monkeypatch.setattr(generation, "answers", counted)
    return calls


pass


@pytest.fixture(scope="module")
def ckpt(tiny_setup: TinySetup, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_trained(make_config(*tiny_setup), tmp_path_factory.mktemp("evaluate") / "ckpt", seed=3)


@pytest.fixture
def ready(ckpt: Path) -> tuple[Pave, Config]:
    """Random weights with a repetition penalty, so that answers are many and hold different words."""
    model, config = load.load_model(ckpt, None, device="cpu")
    model.base.hf.generation_config.repetition_penalty = 1.3
    return model, config


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole")


@pytest.fixture
def whole(ready: tuple[Pave, Config], undisturbed: Path) -> Path:
    """A run that nothing disturbed."""
    if not (undisturbed / run_folder.METRICS).exists():
        evaluate.main(*ready, undisturbed, OPTIONS)
    return undisturbed
