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
from pave.data.dataset import Questions
from pave.sides import exo
from pave.training import train
from pave.types import SideTokens

VIEWS = 4


@pytest.fixture
def rig(tiny_setup: TinySetup, tmp_path: Path) -> Config:
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


def views(tokens: SideTokens | None) -> tuple[int, ...]:
    assert tokens is not None
    return tuple(sorted({int(x) for x in tokens.x[:, 0, 0]}))


def test_seed_epoch_and_question_decide(rig: Config) -> None:
    base = build.load_base(rig.base)
    questions = Questions(rig, base, "train", with_answers=True, seed=1)
    first = [views(sample.sides["exo"]) for sample in questions]
    assert [views(sample.sides["exo"]) for sample in questions] == first
    questions.epoch = 1
    assert [views(sample.sides["exo"]) for sample in questions] != first
    other = Questions(rig, base, "train", with_answers=True, seed=2)
    assert [views(sample.sides["exo"]) for sample in other] != first
    asked = Questions(rig, base, "test", with_answers=False)
    assert {views(sample.sides["exo"]) for sample in asked} == {tuple(range(VIEWS))}


def test_each_epoch_draws_anew_and_a_resumed_run_draws_the_same(
    rig: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[str, tuple[int, ...]]] = []
    draw = exo.load_random

    def spy(path: Path, rng: random.Random) -> SideTokens:
        tokens = draw(path, rng)
        drawn.append((path.name, views(tokens)))
        return tokens

    monkeypatch.setattr(exo, "load_random", spy)
    config = dataclasses.replace(rig, train={**rig.train, "max_steps": -1, "num_train_epochs": 2, "save_steps": 7})
    train.main(config, tmp_path / "run")
    whole = list(drawn)
    half = len(whole) // 2
    assert sorted(whole[:half]) != sorted(whole[half:])
    drawn.clear()
    oldest, *newer = sorted((tmp_path / "run").glob("checkpoint-*"), key=lambda f: int(f.name.split("-")[1]))
    for folder in (*newer, tmp_path / "run/final"):
        shutil.rmtree(folder)
    train.main(config, tmp_path / "run", resume=True)
    assert oldest.name == "checkpoint-7"
    assert 0 < len(drawn) < len(whole)
    assert drawn == whole[-len(drawn) :]
