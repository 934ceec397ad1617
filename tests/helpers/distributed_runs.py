"""Runs that tests do in one process and in two."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import pytest

from helpers import fault_injection
from helpers.tiny_model import SIDE_DIM, TinySetup, make_config, make_data
from pave.config import Config, LoraConfig, PatchConfig, TaskConfig
from pave.tasks.sideworld import Task
from pave.training import train

NO_DEEPSPEED = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed")


def make_run(tiny_setup: TinySetup) -> Config:
    """Six steps of three epochs, without what depends on the number of processes: dropout, means of micro-batches."""
    run = make_config(*tiny_setup, max_steps=6, average_tokens_across_devices=True)
    return dataclasses.replace(run, lora=LoraConfig(r=2, alpha=4, dropout=0.0))


def make_joint_run(tiny_setup: TinySetup, folder: Path) -> Config:
    """Two tasks, each with a patch of its own, so that most micro-batches lack a side-channel."""
    run = make_run(tiny_setup)
    audio = run.sides["audio"]
    near = TaskConfig(task="sideworld", sides=["audio"])
    far = TaskConfig(task="sideworld", root=str(make_data(folder / "far", 8, 1)), sides=["echo"])
    data = dataclasses.replace(run.data, mixture={"near": near, "far": far}, temperature=2.0)
    echo = PatchConfig(side="audio", side_dim=SIDE_DIM, hidden_dim=16, side_hidden_dim=16, features=audio.features)
    return dataclasses.replace(run, sides={"audio": audio, "echo": echo}, data=data)


def train_in_one_process(run: Config, out: Path) -> Path:
    """Do a run of two processes in one, with twice the batch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Task, "target", fault_injection.target_of_several_lengths)
        train.main(dataclasses.replace(run, train={**run.train, "per_device_train_batch_size": 4}), out)
    return out
