"""`pave eval` and `pave score`: answers to a file, scores from the file."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from pave import checkpoint, official, plug
from pave import config as configs
from pave.config import Config, LoraConfig
from pave.data import Questions, Sample, collate
from pave.io.atomic import atomic_file
from pave.model import Pave
from pave.types import Prediction, UserError

log = logging.getLogger(__name__)
PREDICTIONS, METRICS = "predictions.jsonl", "metrics.json"


class Bad(str):
    """Why a question could not be read."""


class Tolerant(Dataset[Sample | Bad]):
    """Questions where an unreadable one comes out as its reason, so that a run can go on and count it."""

    def __init__(self, questions: Questions) -> None:
        self.questions = questions

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int) -> Sample | Bad:
        try:
            return self.questions[index]
        except UserError as error:
            return Bad(error)


@dataclasses.dataclass(frozen=True)
class Options:
    """How to evaluate."""

    split: str | None = None
    """None takes the config's data.eval_split."""
    shuffle_sides: bool = False
    """Every question gets the side-channels of another video."""
    batch: int = 8
    """Questions at once."""
    workers: int = 2
    """Processes that decode videos."""
    max_new_tokens: int = 64
    keep_going: bool = False
    """Count unreadable questions as wrong instead of stopping at the first."""


def main(model: Pave, config: Config, out: Path, options: Options) -> dict[str, float]:
    """Answer all questions of a split; writes predictions.jsonl and metrics.json. Returns the metrics."""
    split = options.split or config.data.eval_split
    questions = Questions(config, model.base, split, with_answers=False)
    if options.shuffle_sides:
        questions.shuffle_sides()
    lines = [
        {"qid": question.qid, "text": answer} if not isinstance(answer, Bad) else {"qid": question.qid, "error": answer}
        for question, answer in zip(questions.questions, _answers(model, questions, options))
    ]
    out.mkdir(parents=True, exist_ok=True)
    with atomic_file(out / PREDICTIONS) as temporary:
        temporary.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return score(out / PREDICTIONS, config.data.task, split, questions.root)


def _answers(model: Pave, questions: Questions, options: Options) -> Iterator[str | Bad]:
    """One answer for each question, in order."""
    tokenizer = model.base.tokenizer
    device = next(model.parameters()).device
    loader = DataLoader(Tolerant(questions), options.batch, num_workers=options.workers, collate_fn=list)
    for items in tqdm(loader, desc="answer", unit="batch"):
        bad = [item for item in items if isinstance(item, Bad)]
        if bad and not options.keep_going:
            raise UserError(f"{bad[0]} (--keep-going counts such questions as wrong instead)")
        for reason in bad:
            log.warning("counted as wrong: %s", reason)
        samples = [item for item in items if not isinstance(item, Bad)]
        texts: Iterator[str] = iter(())
        if samples:
            batch = to_device(collate(samples, tokenizer.pad_token_id, left=True), device)
            del batch["labels"]
            new = model.generate(**batch, max_new_tokens=options.max_new_tokens)
            texts = iter(tokenizer.batch_decode(new, skip_special_tokens=True))
        yield from (item if isinstance(item, Bad) else next(texts) for item in items)


def to_device(value: Any, device: torch.device) -> Any:
    """Tensors of a batch to a device; what is planned on the host (steps, seconds) stays there."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {k: to_device(v, device) for k, v in value.items()}
    return value


def score(predictions: Path, task: str, split: str, root: Path) -> dict[str, float]:
    """Score a predictions file against a task's questions and write metrics.json beside it.

    Raises UserError for a broken line, an unknown or a repeated question.
    """
    module = plug.load("tasks", task)
    questions = {q.qid: q for q in module.load(split, root)}
    answers: dict[str, Prediction] = {}
    failed = 0
    for number, line in enumerate(_lines(predictions), start=1):
        try:
            record = json.loads(line)
            qid = record["qid"]
            text = record.get("text")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{predictions}:{number}: not a prediction ({error!r}); expected qid and text") from error
        if qid not in questions or qid in answers:
            what = "answered twice" if qid in answers else f"not in {task} {split}"
            raise UserError(f"{predictions}:{number}: question '{qid}' is {what}")
        if text is None:
            failed += 1
        else:
            answers[qid] = Prediction(qid, text)
    metrics = module.score([(q, answers.get(qid)) for qid, q in questions.items()])
    chance = module.chance(list(questions.values()))
    result = {"task": task, "split": split, "unreadable": failed, "metrics": metrics, "chance": chance}
    with atomic_file(predictions.with_name(METRICS)) as temporary:
        temporary.write_text(json.dumps(result, indent=1))
    return metrics


def _lines(file: Path) -> Sequence[str]:
    if not file.is_file():
        raise UserError(f"{file}: no such predictions file; `pave eval` writes one")
    return file.read_text().splitlines()


def load_model(
    ckpt: Path, base: str | None, overrides: Sequence[str] = (), base_only: bool = False, device: str | None = None
) -> tuple[Pave, Config]:
    """A trained folder, ours or a released one, on a device; `base_only` leaves its patches and LoRA out."""
    if base is not None:
        overrides = [*overrides, f"base.path={base}"]
    released, given = official.is_official(ckpt), configs.from_overrides(overrides)
    if base_only:
        config = official.read(ckpt, given).config if released else checkpoint.read_config(ckpt, overrides)
        config = dataclasses.replace(config, sides={}, lora=LoraConfig(r=0))
        model = checkpoint.create(config)
    elif released:
        model, config = official.load(ckpt, given)
    else:
        model, config = checkpoint.load(ckpt, overrides)
    return model.eval().to(device or ("cuda" if torch.cuda.is_available() else "cpu")), config


def table(metrics: Mapping[str, float]) -> str:
    """Metrics as lines of name and value."""
    return "\n".join(f"{name:<20}{value:>10.4g}" for name, value in metrics.items())
