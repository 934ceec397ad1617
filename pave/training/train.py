"""`pave train`: one recipe and one Trainer for all tasks."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Dataset, Sampler
from transformers import Trainer, TrainerState, TrainingArguments, set_seed

from pave.checkpoints import build, patch_folder
from pave.config import Config
from pave.data.collate import collate
from pave.data.dataset import QuestionDataset
from pave.models.patched_model import PatchedModel
from pave.models.trainable import describe_parts, part_of, trained_parameters
from pave.training import distillation, dpo, launch, mixture, recipe, report, step_metrics
from pave.training.resume import STATE_FILE, is_finished, newest_checkpoint
from pave.types import IGNORE_INDEX, UserError
from pave.utils import distributed

log = logging.getLogger(__name__)

Batch: TypeAlias = dict[str, Any]
"""Keyword arguments of PatchedModel.forward."""


def main(config: Config, out: Path, resume: bool = False) -> None:
    """Train patches and LoRA, and write a patch folder to `out`/final. Raises UserError for settings that cannot be."""
    launch.check_launcher(config)
    arguments = recipe.training_arguments(config, out)
    log.info("%s", distributed.join_ranks(arguments))
    set_seed(arguments.seed)

    model = build.create(config)
    checkpoint = newest_checkpoint(out) if resume else None
    if checkpoint:
        build.load_into(model, config, checkpoint)
    log.info("%s", describe_parts(model))

    task_datasets = load_task_datasets(config, model, arguments.seed)
    trainer = PaveTrainer(config, model, arguments, task_datasets)
    if config.dpo_beta:
        pairs = {name: data for name, data in task_datasets.items() if isinstance(data, dpo.PreferenceDataset)}
        dpo.compute_reference_logps(model, pairs, out, arguments)

    trainer.add_callback(step_metrics.ReportCallback(config, describe_parts(model), {**recipe.RECIPE, **config.train}))
    try:
        trainer.train_from(checkpoint)
    finally:
        # A run that is stopped or fails has a report, too.
        if trainer.is_world_process_zero() and trainer.state.log_history:
            report.write_report(out, trainer.state.log_history)
    trainer.save_final(out / "final")


def load_task_datasets(config: Config, model: PatchedModel, seed: int) -> dict[str, QuestionDataset]:
    """Load the training questions of every task of a run, by name."""
    dataset_class = dpo.PreferenceDataset if config.dpo_beta else QuestionDataset
    return {
        name: dataset_class(task_config, model.base, task_config.data.train_split, with_answers=True, seed=seed)
        for name, task_config in mixture.task_configs(config).items()
    }


class PaveTrainer(Trainer):
    """transformers' Trainer that saves patch folders, mixes tasks, and has a learning rate for the patches."""

    def __init__(
        self,
        config: Config,
        model: PatchedModel,
        arguments: TrainingArguments,
        task_datasets: Mapping[str, QuestionDataset],
    ) -> None:
        """Set up a run on data sets by task. Raises UserError for settings that would be ignored."""
        self.pave_config, self.pave_model, self.task_datasets = config, model, task_datasets
        self.counts = mixture.questions_per_epoch(config, [len(dataset) for dataset in task_datasets.values()])
        optimizer, optimizer_settings = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
        optimizer_settings["params"] = parameter_groups(config, model, arguments)
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=ConcatDataset(task_datasets.values()),
            data_collator=make_collator(config, model, arguments),
            optimizer_cls_and_kwargs=(optimizer, optimizer_settings),
        )
        self.step_metrics = step_metrics.StepMetrics(
            model, self.accelerator, functools.partial(trained_parameters, model)
        )
        self.add_callback(mixture.EpochCallback(list(task_datasets.values())))
        self.add_callback(self.step_metrics)

        self.preference_loss = dpo.PreferenceLoss(config.dpo_beta) if config.dpo_beta else None
        teacher = distillation.Teacher(model, config) if config.distill_from else None
        self.run_model: Callable[[nn.Module, Batch], dict[str, Tensor]] = self.preference_loss or teacher or run_forward
        # Whether the Trainer counts label tokens and leaves it to `compute_loss` to divide by them.
        self.model_accepts_loss_kwargs = arguments.average_tokens_across_devices

        for (name, dataset), count in zip(task_datasets.items(), self.counts):
            log.info("%s: %d questions, %d an epoch", name, len(dataset), count)

    def train_from(self, checkpoint: Path | None) -> None:
        """Train from the start, or from where a checkpoint ends."""
        if checkpoint:
            state = TrainerState.load_from_json(str(checkpoint / STATE_FILE))
            if is_finished(state, self.args):
                # The Trainer would make one step more.
                self.state = state
                return
        self.train(resume_from_checkpoint=checkpoint and str(checkpoint))

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int] | None:
        """Override: the order of an epoch must be the same on all ranks and after a resume, and mixes the tasks."""
        strategy = self.args.train_sampling_strategy
        is_grouped = strategy == "group_by_length"
        if strategy != "random" and not is_grouped:
            if self.pave_config.data.mixture:
                raise UserError(
                    f"train.train_sampling_strategy={strategy}: data.mixture needs random or group_by_length"
                )
            return super()._get_train_sampler(train_dataset)

        datasets = self.task_datasets.values()
        return mixture.MixtureSampler(
            [len(dataset) for dataset in datasets],
            self.counts,
            self.args.seed if self.args.data_seed is None else self.args.data_seed,
            epoch=lambda: int(self.state.epoch or 0),
            lengths=[length for dataset in datasets for length in dataset.text_lengths()] if is_grouped else None,
            group_size=self.args.train_batch_size * self.args.gradient_accumulation_steps,
        )

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> Tensor | None:
        """Override: count the label tokens of a step on all ranks; None leaves the mean to each micro-batch."""
        if not self.model_accepts_loss_kwargs or not batch_samples:
            return None
        count = sum((batch["labels"][:, 1:] != IGNORE_INDEX).sum() for batch in batch_samples)
        return self.accelerator.gather(torch.as_tensor(count, device=device)).sum()

    def training_step(self, model: nn.Module, inputs: Batch, num_items_in_batch: Tensor | None = None) -> Tensor:
        """Override: measure each micro-batch."""
        with self.step_metrics.micro_step(inputs):
            return super().training_step(model, inputs, num_items_in_batch)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Override: add what was measured to the records of steps; other records have no loss."""
        if "loss" in logs:
            logs = {**logs, **self.step_metrics.pop()}
            if self.preference_loss:
                logs |= self.preference_loss.pop_metrics()
        super().log(logs, start_time)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Override: weigh a micro-batch by its label tokens, so that a step's loss does not depend on their number."""
        outputs = self.run_model(model, inputs)
        loss = outputs["loss"]
        if num_items_in_batch is not None:
            # Gradients are averaged over the ranks, so each loss counts as many times as there are ranks.
            loss = loss * (len(outputs["logits"]) * self.accelerator.num_processes / num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Override: write a patch folder, never the base. The first rank writes; all must call it, to gather."""
        folder = Path(output_dir or str(self.args.output_dir))
        with self._gathered_parameters():
            if self.args.should_save:
                folder.mkdir(parents=True, exist_ok=True)
                # Left by an earlier run, it would mark a half-written checkpoint as complete.
                (folder / STATE_FILE).unlink(missing_ok=True)
                patch_folder.write(self.pave_model, self.pave_config, folder)

    def save_final(self, folder: Path) -> None:
        """Write the patch folder of the finished run, whole or not at all."""
        with self._gathered_parameters():
            if self.is_world_process_zero():
                patch_folder.save(self.pave_model, self.pave_config, folder)
        self.accelerator.wait_for_everyone()

    def _gathered_parameters(self) -> AbstractContextManager[None]:
        """Inside, the parameters that a patch folder holds are whole on every rank."""
        modified = {f"base.{name}" for name in self.pave_model.modified_base_tensors}
        parameters = {
            name: parameter
            for name, parameter in self.pave_model.named_parameters()
            if name in modified or part_of(name).startswith(("patch ", "LoRA"))
        }
        return distributed.gathered(self.pave_model, parameters)

    def _save_rng_state(self, output_dir: str) -> None:
        """Override: next, the first rank marks the checkpoint as complete, so all must have written their files."""
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Override: do nothing, as `main` has read the patch folder before anything was sharded."""


def run_forward(model: nn.Module, inputs: Batch) -> dict[str, Tensor]:
    """Run PatchedModel.forward, whose loss is that of the answers."""
    return model(**inputs)


def make_collator(config: Config, model: PatchedModel, arguments: TrainingArguments) -> Callable[..., Batch]:
    """Make the function from samples to a batch."""
    # Ranks that share parameters must all run a patch that one of them runs.
    needs_all_sides = launch.sides_differ_across_ranks(config) and (arguments.deepspeed or arguments.fsdp)
    side_dims = {name: side.side_dim for name, side in config.sides.items()} if needs_all_sides else None

    collator: Callable[..., Batch] = dpo.collate
    if not config.dpo_beta:
        # Videos one by one: those of another rank may be of other sizes, or of one size.
        collator = functools.partial(collate, separate_videos=distributed.are_sharded(arguments))
    return functools.partial(collator, pad_id=model.base.tokenizer.pad_token_id, side_dims=side_dims)


def parameter_groups(config: Config, model: PatchedModel, arguments: TrainingArguments) -> list[dict[str, object]]:
    """Make two groups with their own learning rates: what trains in the base, such as LoRA, and the patches."""
    modules_and_rates = [
        (model.base, arguments.learning_rate),
        (model.patches, config.patch_lr or arguments.learning_rate),
    ]
    groups = []
    for module, rate in modules_and_rates:
        parameters = [p for p in module.parameters() if p.requires_grad]
        if parameters:
            groups.append({"params": parameters, "lr": rate, "weight_decay": arguments.weight_decay})
    return groups
