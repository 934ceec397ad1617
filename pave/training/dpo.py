"""Learning which of two answers is the better: direct preference optimisation (arXiv 2305.18290)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import TrainingArguments

from pave.data import collate as batches
from pave.data.collate import Sample, to_device
from pave.data.dataset import Questions
from pave.models.patched_model import Pave
from pave.types import IGNORE, SideTokens, UserError
from pave.utils import distributed
from pave.utils.atomic import atomic_file

FILE = "reference.json"
"""Of a run: what its model made of both answers before it learnt, so that a resumed run need not ask again."""


class Pair(NamedTuple):
    """One question with the better and the worse answer."""

    chosen: Sample
    rejected: Sample
    reference: Tensor
    """float[2], log-probabilities of both by the model that training starts from; NaN until they are known."""


class Pairs(Questions):
    """Questions of a task that have a rejected answer too."""

    reference: Mapping[str, Sequence[float]] = {}
    """By question."""

    def check(self) -> None:
        """As for all questions. Raises UserError naming the first without two different answers."""
        for question in self.questions:
            if question.rejected in ("", self.task.target(question)):
                raise UserError(
                    f"{self.root}: question {question.qid} has no worse answer; dpo_beta is for tasks of pairs"
                )
        super().check()

    def __getitem__(self, index: int) -> Pair:  # type: ignore[override]
        question = self.questions[index]
        chosen, rejected = self.samples(index, [self.task.target(question), question.rejected])
        return Pair(chosen, rejected, torch.tensor(self.reference.get(question.qid, (math.nan, math.nan))))

    def _reader(self, plugin: ModuleType, index: int) -> Callable[[Path], SideTokens]:
        """Nothing is drawn at random: the reference has seen the same."""
        return plugin.load


def collate(pairs: Sequence[Pair], pad_id: int, widths: Mapping[str, int] | None = None) -> dict[str, Any]:
    """A batch for Pave.forward of all chosen, then all rejected; `reference` float[2N] is for the loss alone."""
    chosen, rejected = [pair.chosen for pair in pairs], [pair.rejected for pair in pairs]
    if all(pair.chosen.guide == pair.rejected.guide for pair in pairs):
        # Both are about the same sight, so a video is looked at once.
        rejected = [sample._replace(pixels=None) for sample in rejected]
    batch = batches.collate(chosen + rejected, pad_id, widths=widths)
    batch["reference"] = torch.stack([pair.reference for pair in pairs], dim=1).flatten()
    return batch


def log_probabilities(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits float[n,V] of Pave.forward, labels int[B,L] -> that of each row's answer, summed over tokens: float[B]."""
    wanted = labels[:, 1:] != IGNORE
    each = -F.cross_entropy(logits.float(), labels[:, 1:][wanted], reduction="none")
    return each.new_zeros(len(labels)).index_add(0, wanted.nonzero()[:, 0], each)


def margins(logits: Tensor, labels: Tensor, reference: Tensor, beta: float) -> Tensor:
    """How much more the model has come to prefer the chosen than the rejected, times beta: float[N] of 2N rows."""
    chosen, rejected = (log_probabilities(logits, labels) - reference).chunk(2)
    return beta * (chosen - rejected)


def loss(margins: Tensor) -> Tensor:
    """-log sigmoid of the margins float[N], mean."""
    return -F.logsigmoid(margins).mean()


class Preference:
    """What a run on pairs minimises, and how it goes."""

    def __init__(self, beta: float) -> None:
        self.beta = beta
        self.seen: list[Tensor] = []
        """Margins of the micro-batches since `take`."""

    def __call__(self, model: nn.Module, inputs: dict[str, Any]) -> dict[str, Tensor]:
        """What Pave.forward gives, with the loss of the pairs."""
        reference = inputs.pop("reference")
        outputs = model(**inputs)
        found = margins(outputs["logits"], inputs["labels"], reference, self.beta)
        self.seen.append(found.detach())
        return {**outputs, "loss": loss(found)}

    def take(self) -> dict[str, float]:
        """Mean margin, and share of pairs above zero, of this process."""
        found, self.seen = torch.cat(self.seen), []
        return {"preference/margin": found.mean().item(), "preference/right": (found > 0).float().mean().item()}


def refer(model: Pave, parts: Mapping[str, Pairs], out: Path, arguments: TrainingArguments) -> None:
    """Give every question what the model, not yet trained, makes of both answers; kept in `out` for a resumed run.

    Each rank asks its share of the questions. Raises UserError where weights are split, or answers differ in weight.
    """
    if distributed.are_split(arguments) or arguments.average_tokens_across_devices:
        raise UserError(
            "dpo_beta: needs whole weights on each GPU and pairs that count alike: DDP or ZeRO-2, without "
            "train.average_tokens_across_devices"
        )
    batch_size = arguments.per_device_train_batch_size
    file, state = out / FILE, PartialState()
    if not file.is_file():
        asked = [(name, i) for name, part in parts.items() for i in range(len(part))][state.process_index :]
        mine = dict(_ask(model, parts, asked[:: state.num_processes], batch_size))
        merged = [(name, qid, both) for share in gather_object([mine]) for (name, qid), both in share.items()]
        if state.is_main_process:
            out.mkdir(parents=True, exist_ok=True)
            with atomic_file(file) as temporary:
                tables = {name: {q: both for n, q, both in merged if n == name} for name in parts}
                temporary.write_text(json.dumps(tables))
        state.wait_for_everyone()
    known = json.loads(file.read_text())
    for name, part in parts.items():
        part.reference = known[name]


@torch.no_grad()
def _ask(
    model: Pave, parts: Mapping[str, Pairs], asked: Sequence[tuple[str, int]], batch_size: int
) -> Iterator[tuple[tuple[str, str], list[float]]]:
    training, device = model.training, next(model.parameters()).device
    model.eval()
    for start in tqdm(range(0, len(asked), batch_size), desc="reference", unit="batch"):
        few = asked[start : start + batch_size]
        batch = collate([parts[name][i] for name, i in few], model.base.tokenizer.pad_token_id)
        batch.pop("reference")
        batch = to_device(batch, device)
        found = log_probabilities(model(**batch)["logits"], batch["labels"])
        for (name, i), both in zip(few, found.view(2, -1).T.tolist()):
            yield (name, parts[name].questions[i].qid), both
    model.train(training)
