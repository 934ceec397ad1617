"""The official recipe, and the training arguments of a run."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import TrainingArguments
from transformers.integrations import get_available_reporting_integrations

from pave.config import Config
from pave.training.launch import sides_differ_across_ranks
from pave.types import UserError
from pave.utils.registry import nearest

RECIPE: Mapping[str, object] = {
    "learning_rate": 2e-5,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.03,
    "weight_decay": 0.0,
    "max_grad_norm": 0.1,
    "num_train_epochs": 1.0,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 4,
    "gradient_checkpointing": True,
    "seed": 42,
    "save_steps": 2000,
    # Quirk: the official code takes the mean of each micro-batch; True weighs all label tokens of a step alike.
    "average_tokens_across_devices": False,
    "ddp_timeout": 600,
    "logging_steps": 10,
    # Show a loss of NaN instead of leaving it out.
    "logging_nan_inf_filter": False,
    "dataloader_num_workers": 4,
    "report_to": "tensorboard",
    "remove_unused_columns": False,
    "label_names": ["labels"],
}
"""The official recipe, as transformers.TrainingArguments; bf16 where the hardware has it."""


def training_arguments(config: Config, out: Path) -> TrainingArguments:
    """Build the recipe with the config's `train:` on top. Raises UserError with the nearest valid name."""
    check_arguments(config)
    on_gpu = torch.cuda.is_available()
    defaults = {
        **RECIPE,
        "bf16": on_gpu and torch.cuda.is_bf16_supported(),
        "tf32": on_gpu or None,
        "use_cpu": not on_gpu,
        "ddp_find_unused_parameters": sides_differ_across_ranks(config),
    }
    try:
        with warnings.catch_warnings():
            # gradient_checkpointing has a new name in newer versions of transformers; the old one works in all of v5.
            warnings.filterwarnings("ignore", message="`gradient_checkpointing` is deprecated")
            return TrainingArguments(output_dir=str(out), **{**defaults, **config.train})
    except (ValueError, ImportError) as error:
        raise UserError(f"train: {' '.join(str(error).split())}") from error


def check_arguments(config: Config) -> None:
    """Check names and numbers of `train:`. Raises UserError with the nearest valid name."""
    fields = {field.name: field for field in dataclasses.fields(TrainingArguments) if field.init}
    for name, value in config.train.items():
        if name not in fields:
            raise UserError(f"train.{name}: unknown training argument; {nearest(name, fields)}")
        is_number = fields[name].type in ("float", "int", float, int)
        if is_number and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise UserError(f"train.{name}: '{value}' is not a number")

    if config.train.get("resume_from_checkpoint"):
        raise UserError("train.resume_from_checkpoint: is not read; give --resume, which finds the newest by itself")

    report_to = config.train.get("report_to") or ()
    installed = [*get_available_reporting_integrations(), "none", "all"]
    for name in [report_to] if isinstance(report_to, str) else report_to:
        if name not in installed:
            raise UserError(f"train.report_to: '{name}' is not installed; {nearest(name, installed)}")
