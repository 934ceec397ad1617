"""A model with random weights and an undisturbed run of it; a plugin, as several test files use them."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import World
from evaluated import OPTIONS
from tiny import make_config
from trained import save_trained

from pave import evaluate, score
from pave.config import Config
from pave.model import Pave


@pytest.fixture(scope="module")
def ckpt(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_trained(make_config(*world), tmp_path_factory.mktemp("evaluate") / "ckpt", seed=3)


@pytest.fixture
def ready(ckpt: Path) -> tuple[Pave, Config]:
    """Random weights with a repetition penalty, so that answers are many and hold different words."""
    model, config = evaluate.load_model(ckpt, None, device="cpu")
    model.base.hf.generation_config.repetition_penalty = 1.3
    return model, config


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole")


@pytest.fixture
def whole(ready: tuple[Pave, Config], undisturbed: Path) -> Path:
    """A run that nothing disturbed."""
    if not (undisturbed / score.METRICS).exists():
        evaluate.main(*ready, undisturbed, OPTIONS)
    return undisturbed
