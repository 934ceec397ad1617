"""What tests of training share: losses, weights, and runs that are interrupted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pave.checkpoints import build
from pave.config import Config
from pave.training import train


def losses(folder: Path) -> list[float]:
    """The logged losses of a run."""
    return [record["loss"] for record in json.loads((folder / "log.json").read_text()) if "loss" in record]


def check_same_weights(expected: Path, actual: Path) -> None:
    """The final models of two runs are the same, bit by bit."""
    states = [build.load(folder / "final")[0].state_dict() for folder in (expected, actual)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def train_interrupted(config: Config, out: Path, micro_step: int) -> None:
    """Start a run that is interrupted in this micro-step."""
    training_step, calls = train.PaveTrainer.training_step, []

    def interrupt(self: train.PaveTrainer, *arguments: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == micro_step:
            raise KeyboardInterrupt
        return training_step(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.PaveTrainer, "training_step", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train.main(config, out)
