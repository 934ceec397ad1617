"""Cameras in training: a random part of the views, decided by seed, epoch and question; all of them in evaluation."""

from __future__ import annotations

import dataclasses
import random
import shutil
from pathlib import Path

import pytest
import torch
from helpers.tiny_model import TinySetup, make_config

from pave.checkpoints import build
from pave.config import Config, PatchConfig
from pave.data.dataset import QuestionDataset
from pave.sides import exo
from pave.training import train
from pave.types import SideTokens

VIEWS = 4


@pytest.fixture
def exo_config(tiny_setup: TinySetup, tmp_path: Path) -> Config:
    """Four views of every clip, each filled with its own number."""
    root = tmp_path / "data"
    shutil.copytree(tiny_setup.data, root)
    for video in (root / "videos").glob("*.mp4"):
        folder = root / "features/exo" / video.stem
        folder.mkdir(parents=True)
        for view in range(VIEWS):
            torch.save(torch.full((4, 1, 8), float(view)), folder / f"cam{view}.pt")
    side = PatchConfig(side_dim=8, hidden_dim=16, side_hidden_dim=16, features="features/exo")
    return dataclasses.replace(make_config(tiny_setup.base, root), sides={"exo": side})


def view_numbers(tokens: SideTokens | None) -> tuple[int, ...]:
    """The views in the tokens; each is filled with its own number."""
    assert tokens is not None
    return tuple(sorted({int(x) for x in tokens.x[:, 0, 0]}))


def test_seed_epoch_and_question_decide(exo_config: Config) -> None:
    base = build.load_base(exo_config.base)
    questions = QuestionDataset(exo_config, base, "train", with_answers=True, seed=1)
    first_epoch = [view_numbers(sample.sides["exo"]) for sample in questions]
    assert [view_numbers(sample.sides["exo"]) for sample in questions] == first_epoch
    questions.epoch = 1
    assert [view_numbers(sample.sides["exo"]) for sample in questions] != first_epoch
    other_seed = QuestionDataset(exo_config, base, "train", with_answers=True, seed=2)
    assert [view_numbers(sample.sides["exo"]) for sample in other_seed] != first_epoch
    evaluation = QuestionDataset(exo_config, base, "test", with_answers=False)
    assert {view_numbers(sample.sides["exo"]) for sample in evaluation} == {tuple(range(VIEWS))}


def test_each_epoch_draws_anew_and_a_resumed_run_draws_the_same(
    exo_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws: list[tuple[str, tuple[int, ...]]] = []
    load_random = exo.SideChannel.load_random

    def record_draw(self: exo.SideChannel, path: Path, rng: random.Random) -> SideTokens:
        tokens = load_random(self, path, rng)
        draws.append((path.name, view_numbers(tokens)))
        return tokens

    monkeypatch.setattr(exo.SideChannel, "load_random", record_draw)
    config = dataclasses.replace(
        exo_config, train={**exo_config.train, "max_steps": -1, "num_train_epochs": 2, "save_steps": 7}
    )
    train.main(config, tmp_path / "run")
    all_draws = list(draws)
    half = len(all_draws) // 2
    assert sorted(all_draws[:half]) != sorted(all_draws[half:])

    draws.clear()
    oldest, *newer = sorted((tmp_path / "run").glob("checkpoint-*"), key=lambda f: int(f.name.split("-")[1]))
    for folder in (*newer, tmp_path / "run/final"):
        shutil.rmtree(folder)
    train.main(config, tmp_path / "run", resume=True)
    assert oldest.name == "checkpoint-7"
    assert 0 < len(draws) < len(all_draws)
    assert draws == all_draws[-len(draws) :]
