"""Direct preference optimisation (arXiv 2305.18290): learn which of two answers is the better."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
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
from pave.data.dataset import QuestionDataset
from pave.models.patched_model import PatchedModel
from pave.types import IGNORE_INDEX, UserError
from pave.utils import distributed
from pave.utils.atomic import write_text
from pave.utils.json_files import read_json

REFERENCE_FILE = "reference.json"
"""In the folder of a run: log-probabilities by the untrained model, which a resumed run no longer has."""


class PreferencePair(NamedTuple):
    """One question with the better and the worse answer."""

    chosen: Sample
    rejected: Sample
    reference: Tensor
    """float[2], log-probabilities of both answers by the model before training; NaN until they are computed."""


class PreferenceDataset(QuestionDataset):
    """Questions of a task that have a rejected answer too."""

    draws_random_parts = False  # the reference was computed from the same side tokens
    reference_logps: Mapping[str, Sequence[float]] = {}
    """Log-probabilities of the chosen and the rejected answer by the model before training, by question id."""

    def check(self) -> None:
        """Check as for all questions. Raises UserError naming the first without two different answers."""
        for question in self.questions:
            if question.rejected in ("", self.task.target(question)):
                raise UserError(
                    f"{self.root}: question {question.qid} has no worse answer; dpo_beta is for tasks of pairs"
                )
        super().check()

    def __getitem__(self, index: int) -> PreferencePair:  # type: ignore[override]
        question = self.questions[index]
        chosen, rejected = self.make_samples(index, [self.task.target(question), question.rejected])
        reference = self.reference_logps.get(question.qid, (math.nan, math.nan))
        return PreferencePair(chosen, rejected, torch.tensor(reference))


def collate(pairs: Sequence[PreferencePair], pad_id: int, side_dims: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Batch all chosen, then all rejected answers for PatchedModel.forward; `reference` float[2N] is for the loss."""
    chosen = [pair.chosen for pair in pairs]
    rejected = [pair.rejected for pair in pairs]

    # Where visual tokens do not depend on the answer, each video is encoded once for both.
    if all(pair.chosen.prompt_ids == pair.rejected.prompt_ids for pair in pairs):
        rejected = [sample._replace(pixels=None) for sample in rejected]

    batch = batches.collate(chosen + rejected, pad_id, side_dims=side_dims)
    batch["reference"] = torch.stack([pair.reference for pair in pairs], dim=1).flatten()
    return batch


def answer_logps(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum the log-probabilities of each row's label tokens: logits float[n,V], labels int[B,L] -> float[B]."""
    is_label = labels[:, 1:] != IGNORE_INDEX
    token_logps = -F.cross_entropy(logits.float(), labels[:, 1:][is_label], reduction="none")
    row_of_token = is_label.nonzero()[:, 0]
    return token_logps.new_zeros(len(labels)).index_add(0, row_of_token, token_logps)


def margins(logits: Tensor, labels: Tensor, reference: Tensor, beta: float) -> Tensor:
    """Beta times how much the preference for the chosen answer has grown: float[N], from 2N rows."""
    chosen, rejected = (answer_logps(logits, labels) - reference).chunk(2)
    return beta * (chosen - rejected)


def dpo_loss(margins: Tensor) -> Tensor:
    """Mean of -log sigmoid of the margins float[N]."""
    return -F.logsigmoid(margins).mean()


class PreferenceLoss:
    """The loss of a run on pairs; it keeps the margins of micro-batches for the log."""

    def __init__(self, beta: float) -> None:
        self.beta = beta
        self.margins: list[Tensor] = []
        """Of the micro-batches since `pop_metrics`."""

    def __call__(self, model: nn.Module, inputs: dict[str, Any]) -> dict[str, Tensor]:
        """Run PatchedModel.forward, with the loss of the pairs instead of that of the answers."""
        reference = inputs.pop("reference")
        outputs = model(**inputs)
        batch_margins = margins(outputs["logits"], inputs["labels"], reference, self.beta)
        self.margins.append(batch_margins.detach())
        return {**outputs, "loss": dpo_loss(batch_margins)}

    def pop_metrics(self) -> dict[str, float]:
        """Mean margin, and share of pairs with a margin above zero, of this process."""
        all_margins, self.margins = torch.cat(self.margins), []
        accuracy = (all_margins > 0).float().mean().item()
        return {"preference/margin": all_margins.mean().item(), "preference/accuracy": accuracy}


def compute_reference_logps(
    model: PatchedModel, task_datasets: Mapping[str, PreferenceDataset], out: Path, arguments: TrainingArguments
) -> None:
    """Set `reference_logps` of the data sets by the model before training, or from `out`, for a resumed run.

    Raises UserError where weights are sharded, or where answers differ in weight.
    """
    if distributed.are_sharded(arguments) or arguments.average_tokens_across_devices:
        raise UserError(
            "dpo_beta: needs whole weights on each GPU and pairs that count alike: DDP or ZeRO-2, without "
            "train.average_tokens_across_devices"
        )

    file, state = out / REFERENCE_FILE, PartialState()
    if not file.is_file():
        keys = [(name, i) for name, dataset in task_datasets.items() for i in range(len(dataset))]
        rank_keys = keys[state.process_index :: state.num_processes]
        rank_logps = list(iterate_logps(model, task_datasets, rank_keys, arguments.per_device_train_batch_size))

        tables: dict[str, dict[str, list[float]]] = {name: {} for name in task_datasets}
        for name, qid, logps in gather_object(rank_logps):
            tables[name][qid] = logps
        if state.is_main_process:
            out.mkdir(parents=True, exist_ok=True)
            write_text(file, json.dumps(tables))
        state.wait_for_everyone()

    stored_logps = read_json(file, "its own answers of `pave train`; delete it", list(task_datasets))
    for name, dataset in task_datasets.items():
        dataset.reference_logps = stored_logps[name]


@torch.no_grad()
def iterate_logps(
    model: PatchedModel,
    task_datasets: Mapping[str, PreferenceDataset],
    keys: Sequence[tuple[str, int]],
    batch_size: int,
) -> Iterator[tuple[str, str, list[float]]]:
    """Yield task, question id and [chosen, rejected] log-probabilities for each (task, index)."""
    was_training, device = model.training, next(model.parameters()).device
    model.eval()

    for start in tqdm(range(0, len(keys), batch_size), desc="reference", unit="batch"):
        batch_keys = keys[start : start + batch_size]
        pairs = [task_datasets[name][i] for name, i in batch_keys]
        batch = to_device(collate(pairs, model.base.tokenizer.pad_token_id), device)
        batch.pop("reference")

        batch_logps = answer_logps(model(**batch)["logits"], batch["labels"])
        # All chosen come first, then all rejected.
        for (name, i), logps in zip(batch_keys, batch_logps.view(2, -1).T.tolist()):
            yield name, task_datasets[name].questions[i].qid, logps

    model.train(was_training)
