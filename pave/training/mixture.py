"""Joint training: the tasks of a run, and which questions an epoch holds, in which order."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import get_length_grouped_indices

from pave.config import Config
from pave.data.dataset import Questions
from pave.types import UserError


def tasks(config: Config) -> dict[str, Config]:
    """Every task of a run by name, as a config with this task alone."""
    if not config.data.mixture:
        return {config.data.task: config}
    return {
        name: dataclasses.replace(
            config,
            data=dataclasses.replace(
                config.data, task=entry.task or name, root=entry.root or config.data.root, sides=entry.sides, mixture={}
            ),
        )
        for name, entry in config.data.mixture.items()
    }


def shares(config: Config, sizes: Sequence[int]) -> list[int]:
    """How many questions of each task make an epoch, in sum as many as there are.

    Raises UserError for a weight or a temperature that is not above zero.
    """
    weights = {f"data.mixture.{name}.weight": entry.weight for name, entry in config.data.mixture.items()}
    for name, value in {"data.temperature": config.data.temperature, **weights}.items():
        if not 0 < value < math.inf:
            raise UserError(f"{name}={value}: expected a number above 0")
    parts = [w * n ** (1 / config.data.temperature) for w, n in zip(weights.values() or [1.0], sizes)]
    exact = [sum(sizes) * part / sum(parts) for part in parts]
    counts = [int(x) for x in exact]
    # What rounding down left goes to those that lost most by it.
    losers = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
    for i in losers[: sum(sizes) - sum(counts)]:
        counts[i] += 1
    return counts


class Order(Sampler[int]):
    """The questions of an epoch in their order, of seed and epoch alone: the same on all ranks and after a resume.

    None comes twice before all of its task came once. `lengths` asks for questions of like length side by side.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        counts: Sequence[int],
        seed: int,
        epoch: Callable[[], int],
        lengths: Sequence[int] | None = None,
        group: int = 1,
    ) -> None:
        """`sizes` of the tasks, which follow one another; `counts` to draw from each; `group` is a step's questions."""
        self.sizes, self.counts, self.seed, self.epoch = sizes, counts, seed, epoch
        self.lengths, self.group = lengths, group

    def __len__(self) -> int:
        return sum(self.counts)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch())
        chosen = self._draw(generator)
        if self.lengths is None:
            order = torch.randperm(len(chosen), generator=generator).tolist()
        else:
            lengths = [self.lengths[i] for i in chosen]
            order = get_length_grouped_indices(lengths, self.group, generator=generator)
        return iter([chosen[i] for i in order])

    def _draw(self, generator: torch.Generator) -> list[int]:
        """Each task's questions as often as its count has room for all, then a random part of them."""
        chosen: list[int] = []
        first = 0
        for size, count in zip(self.sizes, self.counts):
            times, rest = divmod(count, size)
            chosen += times * list(range(first, first + size))
            if rest:
                chosen += (torch.randperm(size, generator=generator)[:rest] + first).tolist()
            first += size
        return chosen


class Epochs(TrainerCallback):
    """Tells the data which epoch it is, before the epoch's workers start."""

    def __init__(self, parts: Sequence[Questions]) -> None:
        self.parts = parts

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Every epoch, the first one after a resume too."""
        for part in self.parts:
            part.epoch = int(state.epoch or 0)
