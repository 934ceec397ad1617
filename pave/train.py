"""`pave train`: one Trainer for all recipes."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import Trainer, TrainingArguments, set_seed
from transformers.trainer_pt_utils import LengthGroupedSampler

from pave import checkpoint
from pave.config import Config
from pave.data import Questions, collate
from pave.model import Pave
from pave.plug import nearest
from pave.types import UserError

log = logging.getLogger(__name__)

RECIPE: dict[str, Any] = {
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
    "logging_steps": 10,
    "dataloader_num_workers": 4,
    "report_to": "tensorboard",
    "remove_unused_columns": False,
    "label_names": ["labels"],
}
"""The published recipe, under the names of transformers.TrainingArguments; bf16 where there is hardware."""


def main(config: Config, out: Path, resume: bool = False) -> None:
    """Train patches and LoRA, and write a patch folder to `out`."""
    arguments = training_arguments(config, out)
    set_seed(arguments.seed)
    model = checkpoint.create(config)
    log.info("%s", describe(model))
    data = Questions(config, model.base, config.data.train_split, with_answers=True)
    trainer = PaveTrainer(config, model, arguments, data)
    trainer.train(resume_from_checkpoint=newest_checkpoint(out) if resume else None)
    if trainer.is_world_process_zero():
        checkpoint.save(model, config, out / "final")
        (out / "log.json").write_text(json.dumps(trainer.state.log_history, indent=1))


def training_arguments(config: Config, out: Path) -> TrainingArguments:
    """The recipe with the config's `train:` on top. Raises UserError with the nearest valid name."""
    check_arguments(config)
    on_gpu = torch.cuda.is_available()
    hardware = {"bf16": on_gpu and torch.cuda.is_bf16_supported(), "tf32": on_gpu or None, "use_cpu": not on_gpu}
    try:
        with warnings.catch_warnings():
            # gradient_checkpointing has a new name in newer versions of transformers; the old one works in all of v5.
            warnings.filterwarnings("ignore", message="`gradient_checkpointing` is deprecated")
            return TrainingArguments(output_dir=str(out), **{**RECIPE, **hardware, **config.train})
    except ValueError as error:
        raise UserError(f"train: {' '.join(str(error).split())}") from error


def check_arguments(config: Config) -> None:
    """Names and numbers of `train:`. Raises UserError with the nearest valid name."""
    fields = {f.name: f for f in dataclasses.fields(TrainingArguments) if f.init}
    for name, value in config.train.items():
        if name not in fields:
            raise UserError(f"train.{name}: unknown training argument; {nearest(name, fields)}")
        is_number = fields[name].type in ("float", "int", float, int)
        if is_number and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise UserError(f"train.{name}: '{value}' is not a number")


def describe(model: Pave) -> str:
    """The table of what is frozen and what trains."""
    parts: dict[str, tuple[int, int]] = {}
    for name, parameter in model.named_parameters():
        part = part_of(name)
        trained, frozen = parts.get(part, (0, 0))
        n = parameter.numel()
        parts[part] = (trained + n, frozen) if parameter.requires_grad else (trained, frozen + n)
    rows = [f"{'part':<24}{'trained':>14}{'frozen':>16}"]
    rows += [f"{part:<24}{trained:>14,}{frozen:>16,}" for part, (trained, frozen) in parts.items()]
    total = [sum(column) for column in zip(*parts.values())]
    return "\n".join([*rows, f"{'total':<24}{total[0]:>14,}{total[1]:>16,}"])


PARTS = {"vision_tower": "vision tower", "multi_modal_projector": "projector", "image_newline": "newline"}
"""By a piece of a parameter's name."""


def part_of(name: str) -> str:
    """Which part of the model a parameter belongs to."""
    pieces = name.split(".")
    if pieces[0] == "patches":
        return f"patch {pieces[1]}"
    if "lora_A" in pieces or "lora_B" in pieces:
        return "LoRA"
    return next((PARTS[piece] for piece in pieces if piece in PARTS), "LLM")


def newest_checkpoint(out: Path) -> str:
    """The newest checkpoint that was written to its end: the Trainer writes trainer_state.json last."""
    for folder in sorted(out.glob("checkpoint-*"), key=lambda f: int(f.name.split("-")[1]), reverse=True):
        try:
            json.loads((folder / "trainer_state.json").read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            log.warning("%s: not written to its end (a killed run?); an older checkpoint is used", folder)
            continue
        return str(folder)
    raise UserError(f"{out}: no finished checkpoint-* folder to resume from; start without resume")


class PaveTrainer(Trainer):
    """transformers' Trainer that saves patch folders, groups by length and has a learning rate for the patches."""

    def __init__(self, config: Config, model: Pave, arguments: TrainingArguments, data: Questions) -> None:
        self.pave_config, self.pave_model = config, model
        optimizer, settings = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=data,
            data_collator=functools.partial(collate, pad_id=model.base.tokenizer.pad_token_id),
            optimizer_cls_and_kwargs=(optimizer, {**settings, "params": parameter_groups(config, model, arguments)}),
        )
        # The release averages the loss over the label tokens of each micro-batch, then over micro-batches.
        self.model_accepts_loss_kwargs = False

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps
        data = self.train_dataset
        assert isinstance(data, Questions)
        return LengthGroupedSampler(batch, lengths=data.lengths())

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.write(self.pave_model, self.pave_config, folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        checkpoint.read(self.pave_model, self.pave_config, Path(resume_from_checkpoint))


def parameter_groups(config: Config, model: Pave, arguments: TrainingArguments) -> list[dict[str, Any]]:
    """Two groups with their own learning rates: LoRA and patches."""
    lora = [p for p in model.base.parameters() if p.requires_grad]
    patch = [p for p in model.patches.parameters() if p.requires_grad]
    rates = (arguments.learning_rate, config.patch_lr or arguments.learning_rate)
    return [
        {"params": group, "lr": rate, "weight_decay": arguments.weight_decay}
        for group, rate in zip((lora, patch), rates)
        if group
    ]
