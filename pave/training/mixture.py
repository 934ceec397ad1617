"""Joint training on several tasks: their configs, their shares of an epoch, and the order of the questions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import get_length_grouped_indices

from pave.config import Config
from pave.data.dataset import QuestionDataset


def task_configs(config: Config) -> dict[str, Config]:
    """Split the config of a run into one config per task, by name."""
    if not config.data.mixture:
        return {config.data.task: config}

    configs = {}
    for name, entry in config.data.mixture.items():
        root = entry.root or config.data.root
        data = dataclasses.replace(config.data, task=entry.task or name, root=root, sides=entry.sides, mixture={})
        configs[name] = dataclasses.replace(config, data=data)
    return configs


def questions_per_epoch(config: Config, sizes: Sequence[int]) -> list[int]:
    """Count the questions that each task gives to an epoch; their sum is that of `sizes`."""
    weights = [entry.weight for entry in config.data.mixture.values()] or [1.0]
    exponent = 1 / config.data.temperature
    shares = [weight * size**exponent for weight, size in zip(weights, sizes)]
    exact_counts = [sum(sizes) * share / sum(shares) for share in shares]
    counts = [int(count) for count in exact_counts]

    # Rounding down leaves some questions over: they go to the tasks that lost the largest fractions.
    by_loss = sorted(range(len(counts)), key=lambda i: counts[i] - exact_counts[i])
    for i in by_loss[: sum(sizes) - sum(counts)]:
        counts[i] += 1
    return counts


class MixtureSampler(Sampler[int]):
    """The order of an epoch's questions. It depends on seed and epoch alone, so ranks and resumed runs agree on it.

    No question comes twice before all questions of its task came once.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        counts: Sequence[int],
        seed: int,
        epoch: Callable[[], int],
        lengths: Sequence[int] | None = None,
        group_size: int = 1,
    ) -> None:
        """`sizes` of the concatenated task data sets, and `counts` of questions to draw from each.

        With `lengths`, one for each question, questions of similar length come together in groups of `group_size`.
        """
        self.sizes, self.counts, self.seed, self.epoch = sizes, counts, seed, epoch
        self.lengths, self.group_size = lengths, group_size

    def __len__(self) -> int:
        return sum(self.counts)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch())
        drawn = self._draw(generator)
        if self.lengths is None:
            order = torch.randperm(len(drawn), generator=generator).tolist()
        else:
            lengths = [self.lengths[i] for i in drawn]
            order = get_length_grouped_indices(lengths, self.group_size, generator=generator)
        return iter([drawn[i] for i in order])

    def _draw(self, generator: torch.Generator) -> list[int]:
        """Repeat all questions of each task as often as its count allows, and fill up with random ones."""
        drawn: list[int] = []
        first = 0
        for size, count in zip(self.sizes, self.counts):
            repeats, remainder = divmod(count, size)
            drawn += repeats * list(range(first, first + size))
            if remainder:
                drawn += (torch.randperm(size, generator=generator)[:remainder] + first).tolist()
            first += size
        return drawn


class EpochCallback(TrainerCallback):
    """Tell the data sets the epoch before its data workers start: what a side draws at random depends on it."""

    def __init__(self, task_datasets: Sequence[QuestionDataset]) -> None:
        self.task_datasets = task_datasets

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Runs in the first epoch after a resume, too."""
        for dataset in self.task_datasets:
            dataset.epoch = int(state.epoch or 0)
