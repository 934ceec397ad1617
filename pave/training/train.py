"""`pave train`: one Trainer for all recipes."""

from __future__ import annotations

import dataclasses
import functools
import logging
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Sampler
from transformers import Trainer, TrainerState, TrainingArguments, set_seed
from transformers.integrations import get_available_reporting_integrations

from pave.checkpoints import build, patch_folder
from pave.config import Config
from pave.data.collate import collate
from pave.data.dataset import Questions
from pave.models.patched_model import Pave
from pave.models.trainable import describe, part_of, trained
from pave.training import distillation, dpo, launch, mixture, report, step_metrics
from pave.training.resume import STATE, is_done, newest_checkpoint
from pave.types import IGNORE, UserError
from pave.utils import distributed
from pave.utils.registry import nearest

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
    # The release takes the mean of each micro-batch; True weighs all label tokens of a step alike.
    "average_tokens_across_devices": False,
    "ddp_timeout": 600,
    "logging_steps": 10,
    # A loss of NaN is shown, not left out.
    "logging_nan_inf_filter": False,
    "dataloader_num_workers": 4,
    "report_to": "tensorboard",
    "remove_unused_columns": False,
    "label_names": ["labels"],
}
"""The published recipe, under the names of transformers.TrainingArguments; bf16 where there is hardware."""


def main(config: Config, out: Path, resume: bool = False) -> None:
    """Train patches and LoRA, and write a patch folder to `out`."""
    launch.check_launcher(config)
    arguments = training_arguments(config, out)
    log.info("%s", distributed.join(arguments))
    set_seed(arguments.seed)
    model = build.create(config)
    newest = newest_checkpoint(out) if resume else None
    if newest:
        build.read(model, config, Path(newest))
    log.info("%s", describe(model))
    questions = dpo.Pairs if config.dpo_beta else Questions
    parts = {
        name: questions(one, model.base, one.data.train_split, with_answers=True, seed=arguments.seed)
        for name, one in mixture.tasks(config).items()
    }
    trainer = PaveTrainer(config, model, arguments, parts)
    if pairs := {name: part for name, part in parts.items() if isinstance(part, dpo.Pairs)}:
        dpo.refer(model, pairs, out, arguments)
    trainer.add_callback(step_metrics.Pages(config, describe(model), {**RECIPE, **config.train}))
    try:
        if newest and is_done(state := TrainerState.load_from_json(str(Path(newest) / STATE)), arguments):
            # The Trainer would do one more step.
            trainer.state = state
        else:
            trainer.train(resume_from_checkpoint=newest)
    finally:
        # A run that is stopped or fails has a page, too.
        if trainer.is_world_process_zero() and trainer.state.log_history:
            report.write(out, trainer.state.log_history)
    trainer.save_final(out / "final")


def training_arguments(config: Config, out: Path) -> TrainingArguments:
    """The recipe with the config's `train:` on top. Raises UserError with the nearest valid name."""
    check_arguments(config)
    on_gpu = torch.cuda.is_available()
    hardware = {"bf16": on_gpu and torch.cuda.is_bf16_supported(), "tf32": on_gpu or None, "use_cpu": not on_gpu}
    unused = {"ddp_find_unused_parameters": launch.uneven(config)}
    try:
        with warnings.catch_warnings():
            # gradient_checkpointing has a new name in newer versions of transformers; the old one works in all of v5.
            warnings.filterwarnings("ignore", message="`gradient_checkpointing` is deprecated")
            return TrainingArguments(output_dir=str(out), **{**RECIPE, **hardware, **unused, **config.train})
    except (ValueError, ImportError) as error:
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
    if config.train.get("resume_from_checkpoint"):
        raise UserError("train.resume_from_checkpoint: is not read; give --resume, which finds the newest by itself")
    given = config.train.get("report_to") or ()
    there = [*get_available_reporting_integrations(), "none", "all"]
    for name in [given] if isinstance(given, str) else given:
        if name not in there:
            raise UserError(f"train.report_to: '{name}' is not installed; {nearest(name, there)}")


class PaveTrainer(Trainer):
    """transformers' Trainer that saves patch folders, mixes tasks, and has a learning rate for the patches."""

    def __init__(
        self, config: Config, model: Pave, arguments: TrainingArguments, parts: Mapping[str, Questions]
    ) -> None:
        """`parts` are the tasks of the run. Raises UserError for settings that would be ignored."""
        self.pave_config, self.pave_model, self.parts = config, model, parts
        self.counts = mixture.shares(config, [len(part) for part in parts.values()])
        optimizer, settings = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
        # Ranks that share parameters must all run a patch that one of them runs.
        shared = launch.uneven(config) and (arguments.deepspeed or arguments.fsdp)
        widths = {name: side.side_dim for name, side in config.sides.items()} if shared else None
        # Those of another rank may be of other sizes, or of one.
        apart = functools.partial(collate, apart=distributed.are_split(arguments))
        together = dpo.collate if config.dpo_beta else apart
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=ConcatDataset(parts.values()),
            data_collator=functools.partial(together, pad_id=model.base.tokenizer.pad_token_id, widths=widths),
            optimizer_cls_and_kwargs=(optimizer, {**settings, "params": parameter_groups(config, model, arguments)}),
        )
        self.add_callback(mixture.Epochs(list(parts.values())))
        self.gauges = step_metrics.Gauges(model, self.accelerator, functools.partial(trained, model))
        self.add_callback(self.gauges)
        self.teacher = distillation.Teacher(model, config) if config.distill_from else None
        self.preference = dpo.Preference(config.dpo_beta) if config.dpo_beta else None
        # Whether the Trainer counts label tokens and leaves dividing by them to `compute_loss`.
        self.model_accepts_loss_kwargs = arguments.average_tokens_across_devices
        for name, part, count in zip(parts, parts.values(), self.counts):
            log.info("%s: %d questions, %d an epoch", name, len(part), count)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        strategy = self.args.train_sampling_strategy
        if strategy not in ("random", "group_by_length"):
            if self.pave_config.data.mixture:
                raise UserError(
                    f"train.train_sampling_strategy={strategy}: data.mixture needs random or group_by_length"
                )
            return super()._get_train_sampler(train_dataset)
        grouped = strategy == "group_by_length"
        return mixture.Order(
            [len(part) for part in self.parts.values()],
            self.counts,
            self.args.seed if self.args.data_seed is None else self.args.data_seed,
            epoch=lambda: int(self.state.epoch or 0),
            lengths=[length for part in self.parts.values() for length in part.lengths()] if grouped else None,
            group=self.args.train_batch_size * self.args.gradient_accumulation_steps,
        )

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> Tensor | None:
        """Label tokens of a whole step, all ranks and micro-batches; None leaves the mean to each micro-batch."""
        if not self.model_accepts_loss_kwargs or not batch_samples:
            return None
        count = sum((batch["labels"][:, 1:] != IGNORE).sum() for batch in batch_samples)
        return self.accelerator.gather(torch.as_tensor(count, device=device)).sum()

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *more: Any, **named: Any) -> Tensor:
        """A micro-batch, measured."""
        with self.gauges.micro_step(inputs):
            return super().training_step(model, inputs, *more, **named)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """With what was measured, where it is about a step."""
        if "loss" in logs:
            logs = {**logs, **self.gauges.take(), **(self.preference.take() if self.preference else {})}
        super().log(logs, start_time)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """A micro-batch's part of the mean over all label tokens of a step, however many ranks share the step."""
        outputs = (self.preference or self.teacher or _call)(model, inputs)
        loss = outputs["loss"]
        if num_items_in_batch is not None:
            # Gradients are averaged over the ranks, so each loss counts as many times as there are ranks.
            loss = loss * (len(outputs["logits"]) * self.accelerator.num_processes / num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """A patch folder, never the base; the first rank writes, all must come along."""
        folder = Path(output_dir or str(self.args.output_dir))
        with self._whole():
            if self.args.should_save:
                folder.mkdir(parents=True, exist_ok=True)
                # An earlier run's mark of a whole checkpoint; it would also be that of a half-written one.
                (folder / STATE).unlink(missing_ok=True)
                patch_folder.write(self.pave_model, self.pave_config, folder)

    def save_final(self, folder: Path) -> None:
        """A patch folder, whole or not at all."""
        with self._whole():
            if self.is_world_process_zero():
                patch_folder.save(self.pave_model, self.pave_config, folder)
        self.accelerator.wait_for_everyone()

    def _whole(self) -> AbstractContextManager[None]:
        named = self.pave_model.named_parameters()
        tuned = {f"base.{name}" for name in self.pave_model.tuned}
        ours = {n: p for n, p in named if n in tuned or part_of(n).startswith(("patch ", "LoRA"))}
        return distributed.whole(self.pave_model, ours)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # Next the first rank writes the file that marks a whole checkpoint, so all must have written theirs.
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Nothing: `main` has read the patch folder, before anything was sharded."""


def _call(model: nn.Module, inputs: dict[str, Any]) -> Any:
    return model(**inputs)


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
