"""`pave score`: answers in, scores out, always of the whole list of questions. Without torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from pave import judgements, plug
from pave.io.atomic import atomic_file
from pave.metrics.judged import Judged
from pave.types import Prediction, Question, UserError

PREDICTIONS, METRICS, MANIFEST, PARTS = "predictions.jsonl", "metrics.json", "manifest.json", "parts"
SAMPLES = "samples.jsonl"
Record = dict[str, str]
"""One line: `qid`, and `text` or the `error` that kept the question from being read."""


def score(
    predictions: Path, task: str, split: str, root: Path, limit: int | None = None, allow_missing: bool = False
) -> dict[str, Any]:
    """Score a predictions file, or a folder of `pave eval`, its parts merged first; writes metrics.json, samples.jsonl.

    Of the first `limit` questions, or all. Raises UserError for a broken line, and for an unknown, a repeated or,
    unless allowed, a missing question.
    """
    module = plug.load("tasks", task)
    gold: list[Question] = module.load(split, root)
    asked = first(gold, limit)
    if predictions.is_dir():
        predictions = merge(predictions, asked)
    answers, missing = read(predictions, gold, asked, allow_missing)
    said = [answers[q.qid].text for q in asked if q.qid in answers]
    result = {
        "task": task,
        "split": split,
        **_asked_how(predictions.with_name(MANIFEST)),
        "about": module.about(split) if hasattr(module, "about") else {},
        "limit": limit,
        "coverage": {
            "questions": len(gold),
            "asked": len(asked),
            "answered": len(said),
            "missing": len(missing),
            "empty": sum(not text.strip() for text in said),
        },
        "unreadable": len(asked) - len(said) - len(missing),
        "metrics": module.score([(q, answers.get(q.qid)) for q in asked]),
        "chance": module.chance(asked),
    }
    if hasattr(module, "cases"):
        result["judge"] = judgements.summary(predictions, module.cases(asked), gold, answers)
    with atomic_file(predictions.with_name(METRICS)) as temporary:
        temporary.write_text(json.dumps(result, indent=1))
    with atomic_file(predictions.with_name(SAMPLES)) as temporary:
        temporary.write_text("".join(_sample(module, q, answers.get(q.qid)) for q in asked), encoding="utf-8")
    return result


def _sample(module: ModuleType, question: Question, answer: Prediction | None) -> str:
    """One line to read: what was asked about what, what is right, what was said."""
    told = {"qid": question.qid, "video": question.video, "group": question.group, "prompt": module.prompt(question)}
    told |= {"answers": question.answers, "said": None if answer is None else answer.text}
    if isinstance(answer, Judged):
        told["judged"] = {kind: verdict._asdict() for kind, verdict in answer.verdicts.items()}
    return json.dumps(told, ensure_ascii=False) + "\n"


def read(
    predictions: Path, gold: Sequence[Question], asked: Sequence[Question], allow_missing: bool = False
) -> tuple[dict[str, Prediction], list[str]]:
    """The answers of a file by question, with a judge's verdicts, and which of those asked have none.

    Raises UserError as `score`.
    """
    records = _read(predictions, {q.qid for q in gold})
    missing = [q.qid for q in asked if q.qid not in records]
    if missing and not allow_missing:
        raise UserError(
            f"{predictions}: {len(missing)} of {len(asked)} questions have no answer, as '{missing[0]}'; "
            "`pave eval` into the same folder goes on, --allow-missing counts them as wrong"
        )
    answers = {qid: Prediction(qid, record["text"]) for qid, record in records.items() if "text" in record}
    return judgements.attach(predictions, gold, answers), missing


def _asked_how(manifest: Path) -> dict[str, Any]:
    """What the results say of how the questions were asked; nothing is known of answers from elsewhere."""
    written = json.loads(manifest.read_text()) if manifest.is_file() else {}
    sides = written.get("sides", {})
    return {"prompts": written.get("prompts"), "probes": {name: side["probe"] for name, side in sides.items()}}


def first(questions: Sequence[Question], limit: int | None) -> Sequence[Question]:
    """The questions to be asked. Raises UserError for a limit below one."""
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit}: expected one question at least")
    return questions[:limit]


def prompt_version(task: ModuleType, questions: Sequence[Question]) -> str:
    """Which words a model is given, in 16 digits: a hash of every prompt with its history."""
    said = [[q.qid, task.prompt(q), q.history] for q in questions]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


def claim(path: Path, manifest: Mapping[str, Any]) -> None:
    """One folder holds answers of one kind. Raises UserError naming what differs."""
    if not path.exists():
        if (path.parent / PARTS).is_dir():
            raise UserError(f"{path}: missing, though there are answers; choose another folder or delete {path.parent}")
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(manifest, indent=1))
    if differ := differing(json.loads(path.read_text()), manifest):
        told = "; ".join(f"{name} was {one}, is now {other}" for name, one, other in differ)
        raise UserError(f"{path}: answers found otherwise: {told}; choose another folder or delete {path.parent}")


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Entries of two manifests, under dotted names, that are not the same in both."""
    theirs, ours = _flat(one), _flat(json.loads(json.dumps(other)))
    return [
        (name, theirs.get(name), ours.get(name))
        for name in sorted(theirs.keys() | ours.keys())
        if theirs.get(name) != ours.get(name)
    ]


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested entries under dotted names."""
    if not isinstance(value, dict):
        return {name: value}
    return {k: v for key, below in value.items() for k, v in _flat(below, f"{name}.{key}".lstrip(".")).items()}


def gather(out: Path) -> dict[str, Record]:
    """What all processes have answered so far, by question, whatever the order of files and lines."""
    records: dict[str, Record] = {}
    for file in (out / PARTS).glob("*.jsonl"):
        for _, record in _lines(file, torn=True):
            known = records.setdefault(record["qid"], record)
            # A question that could be read later counts; of two answers, which half precision may give, the lesser.
            if "text" in record and ("text" not in known or record["text"] < known["text"]):
                records[record["qid"]] = record
    return records


def merge(out: Path, asked: Sequence[Question]) -> Path:
    """One predictions file from the parts of a folder, in the order of the questions. UserError: no parts."""
    if not (out / PARTS).is_dir():
        raise UserError(f"{out}: no folder {PARTS} in it; expected a folder that `pave eval` wrote")
    records = gather(out)
    lines = [json.dumps(records[q.qid], ensure_ascii=False) for q in asked if q.qid in records]
    with atomic_file(out / PREDICTIONS) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return out / PREDICTIONS


def _read(predictions: Path, known: set[str]) -> dict[str, Record]:
    if not predictions.is_file():
        raise UserError(f"{predictions}: no such predictions file; `pave eval` writes one")
    records: dict[str, Record] = {}
    for number, record in _lines(predictions):
        qid = record["qid"]
        if qid not in known or qid in records:
            what = "answered twice" if qid in records else "not one of this split"
            raise UserError(f"{predictions}:{number}: question '{qid}' is {what}")
        records[qid] = record
    return records


def _lines(file: Path, torn: bool = False) -> Iterator[tuple[int, Record]]:
    """Numbered records of a file, of which a kill may have torn the last. Raises UserError for another broken line."""
    # Not splitlines: an answer may hold any of the breaks that Unicode knows.
    lines = file.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line and number == len(lines):
            return
        try:
            record = json.loads(line)
            kept = {key: record[key] for key in ("qid", "text", "error") if record.get(key) is not None}
            if not all(isinstance(value, str) for value in (kept["qid"], *kept.values())):
                raise TypeError("qid and text must be strings")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if torn and number == len(lines):
                return
            raise UserError(f"{file}:{number}: not a prediction ({error!r}); expected qid and text") from error
        yield number, kept


def table(result: Mapping[str, Any]) -> str:
    """Metrics as lines of name and value; below them what they are of, and how they were asked where it was unusual."""
    lines = [f"{name:<20}{value:>10.4g}" for name, value in result["metrics"].items()]
    coverage = result["coverage"]
    counts = [f"{count} {what}" for what in ("empty", "missing") if (count := coverage[what])]
    counts += [f"{result['unreadable']} unreadable"] if result["unreadable"] else []
    lines.append(", ".join([f"coverage: {coverage['answered']} of {coverage['asked']} questions answered", *counts]))
    if coverage["asked"] < coverage["questions"]:
        lines.append(f"ONLY THE FIRST {coverage['asked']} of {coverage['questions']} questions (--limit)")
    lines += [f"side-channel {name}: {probe}" for name, probe in result["probes"].items() if probe]
    lines += judgements.lines(result["judge"]) if "judge" in result else []
    return "\n".join(lines)
