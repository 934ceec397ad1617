"""The folder of an evaluation: a manifest, one part for each process, and the predictions merged from them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypedDict, cast

from pave.config import RENAMED
from pave.types import Question, UserError
from pave.utils.atomic import write_text
from pave.utils.json_files import read_json, read_jsonl
from pave.utils.settings import rename_old_settings

if TYPE_CHECKING:
    from typing_extensions import NotRequired

    from pave.evaluation.judge_summary import JudgeSummary

PREDICTIONS, METRICS, MANIFEST, PARTS = "predictions.jsonl", "metrics.json", "manifest.json", "parts"
EXPECTED = "a folder that `pave eval` wrote"
Record = dict[str, str]
"""One line: `qid`, and `text` or the `error` that kept the question from being read."""


class Coverage(TypedDict):
    """Numbers of questions."""

    questions: int
    """Of the split."""
    asked: int
    answered: int
    missing: int
    empty: int
    """Answers without text."""


class Metrics(TypedDict):
    """The content of metrics.json."""

    task: str
    split: str
    prompts: str | None
    """Hash of the prompts, where the manifest tells it."""
    probes: dict[str, str]
    """Perturbation of each side-channel; empty for none."""
    about: dict[str, str]
    limit: int | None
    coverage: Coverage
    unreadable: int
    metrics: dict[str, float]
    chance: dict[str, float]
    judge: NotRequired[JudgeSummary | None]
    """For a task with a judge; None if it has not been asked."""


class Change(NamedTuple):
    """An entry that differs between two manifests; None where one of them lacks it."""

    name: str
    """Keys from the outside in, joined by dots."""
    before: object
    after: object


def claim_run_folder(path: Path, manifest: Mapping[str, object], same_versions: Collection[str] = ()) -> None:
    """Write the manifest, or check that the folder was written under an equal one: a folder holds one run.

    `same_versions` are older versions of pave that give the same answers, whose runs go on. Raises UserError naming
    what differs, and for answers without a manifest.
    """
    if not path.exists():
        if (path.parent / PARTS).is_dir():
            raise UserError(f"{path}: missing, though there are answers; choose another folder or delete {path.parent}")
        write_text(path, json.dumps(manifest, indent=1))

    # Read back even if just written: of two processes that start together, one has written it.
    before = rename_old_settings(read_json(path, EXPECTED), RENAMED)
    assert isinstance(before, dict)
    if before.get("pave") in same_versions:
        before["pave"] = manifest["pave"]
    changes = changed_entries(before, manifest)
    if changes:
        text = "; ".join(f"{change.name} was {change.before}, is now {change.after}" for change in changes)
        raise UserError(f"{path}: answers of another run: {text}; choose another folder or delete {path.parent}")


def changed_entries(before: Mapping[str, object], after: Mapping[str, object]) -> list[Change]:
    """List what differs between two manifests, `before` read from JSON."""
    entries_before = _flatten(before)
    # Through JSON, which makes lists of tuples.
    entries_after = _flatten(json.loads(json.dumps(after)))

    names = sorted(entries_before.keys() | entries_after.keys())
    changes = [Change(name, entries_before.get(name), entries_after.get(name)) for name in names]
    return [change for change in changes if change.before != change.after]


def _flatten(value: object, name: str = "") -> dict[str, object]:
    """Nested entries under dotted names."""
    if not isinstance(value, dict):
        return {name: value}
    entries: dict[str, object] = {}
    for key, inner in value.items():
        entries |= _flatten(inner, f"{name}.{key}".lstrip("."))
    return entries


def gather(out: Path) -> dict[str, Record]:
    """Read the answers of all processes so far, by question, whatever the order of files and lines."""
    records: dict[str, Record] = {}
    for file in (out / PARTS).glob("*.jsonl"):
        for record in read_records(file, allow_partial_last_line=True):
            qid = record["qid"]
            current = records.setdefault(qid, record)
            if "text" not in record:
                continue
            # An answer replaces an error. Two answers, which may differ in half precision: the smaller one, always.
            if "text" not in current or record["text"] < current["text"]:
                records[qid] = record
    return records


def merge(out: Path, questions: Sequence[Question]) -> Path:
    """Write the predictions file from the parts, in the order of the questions. Raises UserError without parts."""
    if not (out / PARTS).is_dir():
        raise UserError(f"{out}: no folder {PARTS} in it; expected {EXPECTED}")

    records = gather(out)
    lines = [json.dumps(records[q.qid], ensure_ascii=False) for q in questions if q.qid in records]
    write_text(out / PREDICTIONS, "".join(f"{line}\n" for line in lines))
    return out / PREDICTIONS


def read_predictions(file: Path, qids: Collection[str]) -> dict[str, Record]:
    """Read a predictions file, by question. Raises UserError for a question that is not in `qids`, or comes twice."""
    if not file.is_file():
        raise UserError(f"{file}: no such predictions file; `pave eval` writes one")

    records: dict[str, Record] = {}
    for number, record in enumerate(read_records(file), start=1):
        qid = record["qid"]
        if qid not in qids:
            raise UserError(f"{file}:{number}: question '{qid}' is not one of this split")
        if qid in records:
            raise UserError(f"{file}:{number}: question '{qid}' is answered twice")
        records[qid] = record
    return records


def read_records(file: Path, allow_partial_last_line: bool = False) -> list[Record]:
    """Read the lines of one file. Raises UserError for a line that is no prediction."""
    return read_jsonl(file, "a prediction with qid and text", _parse_record, allow_partial_last_line)


def _parse_record(line: Mapping[str, str]) -> Record:
    """Take the known entries of a line. Raises KeyError or TypeError if it is no prediction."""
    record = {key: line[key] for key in ("qid", "text", "error") if line.get(key) is not None}
    if not all(isinstance(value, str) for value in (record["qid"], *record.values())):
        raise TypeError("qid and text must be strings")
    return record


def read_metrics(folder: Path) -> Metrics:
    """Read the scores of a folder that `pave eval` wrote. Raises UserError where there are none."""
    keys = ("task", "split", "metrics", "chance", "coverage")
    return cast("Metrics", read_json(folder / METRICS, EXPECTED, keys))
