"""What tests of training share: losses, weights, and runs that are interrupted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from helpers import fault_injection
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
    faulty_step = fault_injection.fail_after(micro_step - 1, fault_injection.interrupt)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.PaveTrainer, "training_step", faulty_step)
        with pytest.raises(KeyboardInterrupt):
            train.main(config, out)
