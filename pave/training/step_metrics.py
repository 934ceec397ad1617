"""Measure training steps for the log: norms of gradients and updates, magnitude of patches, speed, memory."""

from __future__ import annotations

import functools
import logging
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pave.config import Config
from pave.models.patched_model import PatchedModel
from pave.training import report
from pave.types import VIDEO_TOKEN_ID

log = logging.getLogger(__name__)
GIB = 2**30
VISUAL_TOKENS = "visual tokens"
"""Beside the names of patches, which have no space."""
Parts = Mapping[str, list[nn.Parameter]]
"""Trained parameters by part of the model."""


class StepMetrics(TrainerCallback):
    """Measure the steps that are logged, on all ranks together. Training does not depend on it."""

    def __init__(self, model: PatchedModel, accelerator: Accelerator, trained_parts: Callable[[], Parts]) -> None:
        """`trained_parts` is asked at each step, because FSDP2 replaces the parameters."""
        self.model, self.accelerator = model, accelerator
        self.trained_parts = lambda: {_log_name(part): parameters for part, parameters in trained_parts().items()}
        # ZeRO makes its step inside the backward pass, on shards of its own.
        self.by_part = accelerator.distributed_type != DistributedType.DEEPSPEED
        self.is_logged_step = False
        self.ids: Tensor | None = None
        """int[B,L], while a micro-batch of a logged step runs."""
        self.metrics: dict[str, float] = {}
        self.old_parameters: dict[str, list[Tensor]] = {}
        self._reset()

        for name, patch in model.patches.items():
            patch.register_forward_hook(functools.partial(self._measure_patch, name))
        model.base.llm.register_forward_pre_hook(self._measure_visual_tokens, with_kwargs=True)

    def _reset(self) -> None:
        self.counters: dict[str, int | Tensor] = {"samples": 0, "tokens": 0}
        self.squares: dict[str, int | Tensor] = dict.fromkeys([VISUAL_TOKENS, *self.model.patches], 0)
        """Sums of squares of visual tokens and of what each patch adds."""
        self.sizes: dict[str, int | Tensor] = dict.fromkeys(self.squares, 0)
        """How many numbers are in each of those sums."""
        self.start_time = time.perf_counter()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Start the clock; a resumed run does not count the time before."""
        self._reset()
        if not self.by_part:
            log.info("logged without norms of gradients and updates by part: ZeRO steps inside the backward pass")

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Find out whether this step will be logged. Which step ends an epoch is not known in advance: measure all."""
        step = state.global_step + 1
        is_due = args.logging_strategy == "steps" and step % state.logging_steps == 0
        is_first = step == 1 and args.logging_first_step
        self.is_logged_step = is_due or is_first or args.logging_strategy == "epoch"

    @contextmanager
    def micro_step(self, inputs: Mapping[str, Any]) -> Iterator[None]:
        """Measure the forward and backward pass of a micro-batch, which run inside."""
        self.counters["samples"] += len(inputs["ids"])
        self.counters["tokens"] += inputs["mask"].sum()
        self.ids = inputs["ids"] if self.is_logged_step else None
        yield
        self.ids = None

        # After the last micro-batch of a step the gradients are complete, and not yet clipped.
        if self.is_logged_step and self.by_part and self.accelerator.sync_gradients:
            scale = self.accelerator.scaler.get_scale() if self.accelerator.scaler else 1.0
            for part, parameters in self.trained_parts().items():
                gradients = [p.grad for p in parameters if p.grad is not None]
                self.metrics[f"{part}/grad_norm"] = total_norm(gradients) / scale

    def _measure_patch(self, name: str, patch: nn.Module, inputs: tuple[Any, ...], update: Tensor) -> None:
        """Sum squares of what a patch adds, float[B,T,S,D]; `inputs` are those of Patch.forward."""
        if self.ids is not None:
            # Samples without this side-channel hold one step of zeros, and nothing is added to them.
            is_present = inputs[1].flatten(1).any(1)
            self.squares[name] += (_sum_of_squares(update.flatten(1)) * is_present).sum()
            self.sizes[name] += is_present.sum() * update[0].numel()

    def _measure_visual_tokens(self, llm: nn.Module, inputs: tuple[Any, ...], named_inputs: dict[str, Any]) -> None:
        """Sum squares of the visual tokens as the LLM gets them."""
        if self.ids is not None:
            embeds = named_inputs["inputs_embeds"]
            is_visual = self.ids.to(embeds.device) == VIDEO_TOKEN_ID
            self.squares[VISUAL_TOKENS] += (_sum_of_squares(embeds) * is_visual).sum()
            self.sizes[VISUAL_TOKENS] += is_visual.sum() * embeds.shape[-1]

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Keep the parameters as they are before the step."""
        if self.is_logged_step and self.by_part:
            for part, parameters in self.trained_parts().items():
                self.old_parameters[part] = [p.detach().clone() for p in parameters]

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: torch.optim.Optimizer,
        **kwargs: object,
    ) -> None:
        """Compare the parameters with those before the step, and log the rates of this step."""
        if not self.is_logged_step:
            return
        rates = [group["lr"] for group in optimizer.param_groups]
        for part, parameters in self.trained_parts().items():
            # The groups of train.parameter_groups: tensors of the base first, then those of patches.
            self.metrics[f"{part}/learning_rate"] = rates[-1 if part.startswith("patch/") else 0]
            if old := self.old_parameters.pop(part, None):
                old_norm = total_norm(old)
                # In place, so that no third copy of the parameters is made.
                update = [x.sub_(p.detach()) for x, p in zip(old, parameters)]
                self.metrics[f"{part}/update_norm"] = total_norm(update) / old_norm

    def pop(self) -> dict[str, float]:
        """Return what was measured since the last call, over all ranks. All ranks must call it."""
        seconds = time.perf_counter() - self.start_time
        memory = {"memory/process_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB}
        if torch.cuda.is_available():
            memory["memory/gpu_gib"] = torch.cuda.max_memory_allocated() / GIB
        counters = dict(zip(self.counters, self._gather(self.counters.values()).sum(0).tolist()))
        squares = dict(zip(self.squares, self._gather(self.squares.values()).sum(0).tolist()))
        sizes = dict(zip(self.sizes, self._gather(self.sizes.values()).sum(0).tolist()))
        peaks = dict(zip(memory, self._gather(memory.values()).max(0).values.tolist()))

        metrics = dict(self.metrics)
        for name, weight in self.model.patch_weights.items():
            if sizes[name] and squares[VISUAL_TOKENS]:
                mean_square = squares[VISUAL_TOKENS] / sizes[VISUAL_TOKENS]
                ratio = squares[name] / sizes[name] / mean_square
                metrics[f"patch/{name}/relative_magnitude"] = abs(weight) * ratio**0.5
        speed = {f"{name}_per_second": count / seconds for name, count in counters.items()}

        self.is_logged_step, self.metrics = False, {}
        self._reset()
        return {**metrics, **speed, **peaks, "seconds": seconds}

    def _gather(self, values: Iterable[float | Tensor]) -> Tensor:
        """Numbers of all ranks, float64[ranks, values]."""
        row = [torch.as_tensor(x, dtype=torch.float64).to(self.accelerator.device) for x in values]
        return self.accelerator.gather(torch.stack(row)[None]).cpu()


def _log_name(part: str) -> str:
    """The name of a part in the log: patch/audio, lora, vision_tower."""
    return part.replace(" ", "/", 1) if part.startswith("patch ") else part.lower().replace(" ", "_")


def _sum_of_squares(x: Tensor) -> Tensor:
    """Over the last dimension."""
    return torch.linalg.vector_norm(x.detach(), dim=-1, dtype=torch.float32).double().square()


def total_norm(tensors: Sequence[Tensor]) -> float:
    """The norm of all tensors as one vector, with all shards where FSDP2 has split them."""
    norm = get_total_norm(tensors)
    return (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()


class ReportCallback(TrainerCallback):
    """Write the report of a run when it starts to train and at each save."""

    def __init__(self, config: Config, parameters: str, settings: Iterable[str]) -> None:
        """`parameters` is the table of trainable.describe; `settings` name the training arguments to be shown."""
        self.config, self.parameters, self.settings = config, parameters, settings

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Write what the run is; only now the number of steps is known."""
        if state.is_world_process_zero:
            settings = {name: getattr(args, name) for name in self.settings}
            facts = report.run_facts(self.config, settings, self.parameters, describe_hardware(args))
            report.write_run_facts(Path(args.output_dir), {**facts, "steps": state.max_steps}, state.global_step > 0)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Write the report, so that a run that is killed has one, too."""
        if state.is_world_process_zero:
            report.write_report(Path(args.output_dir), state.log_history)


def describe_hardware(arguments: TrainingArguments) -> str:
    """The number of processes, and the device of one."""
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(arguments.device)
        return f"{arguments.world_size} process(es), each on {card.name} with {card.total_memory / GIB:.0f} GiB"
    return f"{arguments.world_size} process(es) on a CPU, {torch.get_num_threads()} thread(s) each"
