"""A tiny model to evaluate, a finished run, and commands in processes without certain modules."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Sequence
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
from pave.models.patched_model import PatchedModel

OPTIONS = Options(split="train", workers=0, batch=4, max_new_tokens=6)
NUM_QUESTIONS = 20
Ready = tuple[PatchedModel, Config]


def results(out: Path) -> tuple[str, str]:
    """Texts of predictions and metrics."""
    return (out / run_folder.PREDICTIONS).read_text(), (out / run_folder.METRICS).read_text()


def change_options(**changes: Any) -> Options:
    return dataclasses.replace(OPTIONS, **changes)


def count_answers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows with each call of `generation.answers`, by its number of questions."""
    calls: list[int] = []
    answers = generation.answers

    def counted(model: PatchedModel, groups: Any, *arguments: Any) -> Any:
        calls.append(sum(len(group.prompts) for group in groups))
        return answers(model, groups, *arguments)

    monkeypatch.setattr(generation, "answers", counted)
    return calls


def run_without(modules: Sequence[str], argv: Sequence[str], prelude: str = "") -> str:
    """Run a command in a process of its own, which must not import these modules. Returns its output."""
    code = f"import sys\n{prelude}\nfrom pave.cli import main\nassert main.main({list(argv)}) == 0\n"
    code += f"assert not {set(modules)} & set(sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def ckpt(tiny_setup: TinySetup, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_trained(make_config(*tiny_setup), tmp_path_factory.mktemp("evaluate") / "ckpt", seed=3)


@pytest.fixture
def ready(ckpt: Path) -> Ready:
    """Random weights with a repetition penalty, so that answers are many and hold different words."""
    model, config = load.load_model(ckpt, None, device="cpu")
    model.base.hf.generation_config.repetition_penalty = 1.3
    return model, config


@pytest.fixture(scope="module")
def finished_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("finished")


@pytest.fixture
def finished(ready: Ready, finished_folder: Path) -> Path:
    """A run that nothing disturbed."""
    if not (finished_folder / run_folder.METRICS).exists():
        evaluate.main(*ready, finished_folder, OPTIONS)
    return finished_folder
