"""What tests of `distributed` and others share."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import pytest

from helpers import fault_injection
from helpers.tiny_model import SIDE_DIM, TinySetup, make_config, make_data
from pave.config import Config, LoraConfig, PatchConfig, TaskConfig
from pave.tasks import sideworld
from pave.training import train

NO_DEEPSPEED = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed")


def make_run(tiny_setup: TinySetup) -> Config:
    """Eight steps of three epochs, without what no two numbers of processes share: dropout, means of micro-batches."""
    run = make_config(*tiny_setup, max_steps=8, average_tokens_across_devices=True)
    return dataclasses.replace(run, lora=LoraConfig(r=2, alpha=4, dropout=0.0))


def make_joint_run(tiny_setup: TinySetup, folder: Path) -> Config:
    """Two tasks, each with a patch of its own, so that most micro-batches lack a side-channel."""
    run = make_run(tiny_setup)
    audio = run.sides["audio"]
    near = TaskConfig(task="sideworld", sides=["audio"])
    far = TaskConfig(task="sideworld", root=str(make_data(folder / "far", 8, 1)), sides=["echo"])
    mixed = dataclasses.replace(run.data, mixture={"near": near, "far": far}, temperature=2.0)
    echo = PatchConfig(side="audio", side_dim=SIDE_DIM, hidden_dim=16, side_hidden_dim=16, features=audio.features)
    return dataclasses.replace(run, sides={"audio": audio, "echo": echo}, data=mixed)


def alone(run: Config, out: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One process with twice the batch."""
    monkeypatch.setattr(sideworld.Task, "target", staticmethod(fault_injection.wordy))
    train.main(dataclasses.replace(run, train={**run.train, "per_device_train_batch_size": 4}), out)
    return out
