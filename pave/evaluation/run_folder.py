"""The folder of an evaluation: manifest, parts and predictions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pave.types import Question, UserError
from pave.utils.atomic import atomic_file

PREDICTIONS, METRICS, MANIFEST, PARTS = "predictions.jsonl", "metrics.json", "manifest.json", "parts"
Record = dict[str, str]
"""One line: `qid`, and `text` or the `error` that kept the question from being read."""


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
