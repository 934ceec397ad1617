"""What a training step did, for its log: norms of gradients and updates, loudness of patches, speed, memory."""

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
from pave.models.patched_model import Pave
from pave.training import report
from pave.types import VIDEO

log = logging.getLogger(__name__)
GIB = 2**30


class Gauges(TrainerCallback):
    """Measures the steps that are logged; all ranks must come along. Nothing that trains depends on it."""

    def __init__(
        self, model: Pave, accelerator: Accelerator, trained: Callable[[], Mapping[str, list[nn.Parameter]]]
    ) -> None:
        """`trained` gives what trains, by part, as it is at that moment: FSDP2 puts other parameters in."""
        self.model, self.accelerator = model, accelerator
        self.trained = lambda: {_logged(part): parameters for part, parameters in trained().items()}
        # ZeRO takes its step inside the backward pass, on pieces of its own.
        self.by_part = accelerator.distributed_type != DistributedType.DEEPSPEED
        self.due = False
        self.ids: Tensor | None = None
        """int[B,L], while a micro-batch is measured."""
        self.found: dict[str, float] = {}
        self.old: dict[str, list[Tensor]] = {}
        self._start()
        for name, patch in model.patches.items():
            patch.register_forward_hook(functools.partial(self._patch, name))
        model.base.lm.register_forward_pre_hook(self._llm, with_kwargs=True)

    def _start(self) -> None:
        names = ("samples", "tokens", "visual", "visual numbers", *self.model.patches)
        self.sums: dict[str, Any] = dict.fromkeys([*names, *(f"{name} numbers" for name in self.model.patches)], 0)
        self.since = time.perf_counter()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Time runs from here; a resumed run leaves out what was before."""
        self._start()
        if not self.by_part:
            log.info("logged without norms of gradients and updates by part: ZeRO steps inside the backward pass")

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Whether this step will be logged; which one ends an epoch is not known before."""
        step = state.global_step + 1
        by_steps = args.logging_strategy == "steps" and step % state.logging_steps == 0
        self.due = by_steps or args.logging_strategy == "epoch" or (step == 1 and args.logging_first_step)

    @contextmanager
    def micro_step(self, inputs: Mapping[str, Any]) -> Iterator[None]:
        """Around the forward and backward pass of a batch."""
        self.sums["samples"] += len(inputs["ids"])
        self.sums["tokens"] += inputs["mask"].sum()
        self.ids = inputs["ids"] if self.due else None
        yield
        self.ids = None
        # Where it ends a step, the gradients are whole now, and nothing has clipped them.
        if self.due and self.by_part and self.accelerator.sync_gradients:
            scale = self.accelerator.scaler.get_scale() if self.accelerator.scaler else 1.0
            for part, parameters in self.trained().items():
                self.found[f"{part}/grad_norm"] = norm([p.grad for p in parameters if p.grad is not None]) / scale

    def _patch(self, name: str, patch: nn.Module, inputs: tuple[Any, ...], update: Tensor) -> None:
        """Sum of squares of what a patch adds, float[B,T,S,D]."""
        if self.ids is not None:
            # A step of zeros stands for a side-channel that is not there; nothing is added then.
            heard = inputs[1].flatten(1).any(1)
            self.sums[name] += (_squares(update.flatten(1)) * heard).sum()
            self.sums[f"{name} numbers"] += heard.sum() * update[0].numel()

    def _llm(self, lm: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        """The same of the visual tokens as the LLM gets them."""
        if self.ids is not None:
            embeds = named["inputs_embeds"]
            visual = self.ids.to(embeds.device) == VIDEO
            self.sums["visual"] += (_squares(embeds) * visual).sum()
            self.sums["visual numbers"] += visual.sum() * embeds.shape[-1]

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keeps what the step will change."""
        if self.due and self.by_part:
            self.old = {part: [p.detach().clone() for p in parameters] for part, parameters in self.trained().items()}

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The change, and the rates it was made with."""
        if not self.due:
            return
        rates = [group["lr"] for group in kwargs["optimizer"].param_groups]
        for part, parameters in self.trained().items():
            # The groups of train.parameter_groups: what is in the base, then patches.
            self.found[f"{part}/learning_rate"] = rates[-1 if part.startswith("patch/") else 0]
            if old := self.old.pop(part, None):
                size = norm(old)
                change = norm([x.sub_(p.detach()) for x, p in zip(old, parameters)])
                self.found[f"{part}/update_norm"] = change / size

    def take(self) -> dict[str, float]:
        """What was found since the last time, of all ranks together."""
        seconds = time.perf_counter() - self.since
        memory = {"memory/process_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB}
        if torch.cuda.is_available():
            memory["memory/gpu_gib"] = torch.cuda.max_memory_allocated() / GIB
        row = [torch.as_tensor(x, dtype=torch.float64) for x in (*self.sums.values(), *memory.values())]
        ranks = self.accelerator.gather(torch.stack([x.to(self.accelerator.device) for x in row])[None]).cpu()
        sums = dict(zip(self.sums, ranks.sum(0).tolist()))
        peaks = dict(zip(memory, ranks.max(0).values[len(sums) :].tolist()))
        found = dict(self.found)
        for name, weight in self.model.patch_weights.items():
            if sums[f"{name} numbers"] and sums["visual"]:
                share = sums[name] / sums[f"{name} numbers"] / (sums["visual"] / sums["visual numbers"])
                found[f"patch/{name}/loudness"] = abs(weight) * share**0.5
        speed = {"samples_per_second": sums["samples"] / seconds, "tokens_per_second": sums["tokens"] / seconds}
        self.due, self.found = False, {}
        self._start()
        return {**found, **speed, **peaks, "seconds": seconds}


def _logged(part: str) -> str:
    """A part's name in the log: patch/audio, lora, vision_tower."""
    return part.replace(" ", "/", 1) if part.startswith("patch ") else part.lower().replace(" ", "_")


def _squares(x: Tensor) -> Tensor:
    """Sum of squares over the last dimension."""
    return torch.linalg.vector_norm(x.detach(), dim=-1, dtype=torch.float32).double().square()


def norm(tensors: Sequence[Tensor]) -> float:
    """Of all tensors as one vector; of all pieces where FSDP2 has split them."""
    total = get_total_norm(tensors)
    return (total.full_tensor() if isinstance(total, DTensor) else total).item()


class Pages(TrainerCallback):
    """Writes the report of a run when it starts to train and at each save."""

    def __init__(self, config: Config, parameters: str, settings: Iterable[str]) -> None:
        """`parameters` is the table of train.describe; `settings` are the training arguments to be shown."""
        self.config, self.parameters, self.settings = config, parameters, settings

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """By now it is known how many steps it will be."""
        if state.is_world_process_zero:
            settings = {name: getattr(args, name) for name in self.settings}
            found = report.facts(self.config, settings, self.parameters, hardware(args))
            report.begin(Path(args.output_dir), {**found, "steps": state.max_steps}, state.global_step > 0)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """So that a run that is killed has a page, too."""
        if state.is_world_process_zero:
            report.write(Path(args.output_dir), state.log_history)


def hardware(arguments: TrainingArguments) -> str:
    """Processes and what one runs on."""
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(arguments.device)
        return f"{arguments.world_size} process(es), each on {card.name} with {card.total_memory / GIB:.0f} GiB"
    return f"{arguments.world_size} process(es) on a CPU, {torch.get_num_threads()} thread(s) each"
