"""The files of the release, made of raw annotations; running it again changes nothing that is there already."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pave.types import Question, UserError
from pave.utils.atomic import atomic_file


def every(raw: Path, files: Mapping[str, str], make: Mapping[str, Callable[[], list[str]]]) -> list[str]:
    """Lines on what was made of each split whose annotations are below `raw`. UserError where none are."""
    lines: list[str] = []
    there = {split for split in make if found(raw / files[split])}
    if not there:
        wanted = ", ".join(files[split] for split in make)
        raise UserError(f"{raw}: none of {wanted}; download at least one (the task's page in doc/datasets says where)")
    for split, run in make.items():
        lines += run() if split in there else [f"{split}: left out, {files[split]} is not there"]
    return lines


def found(file: Path) -> bool:
    """Is an annotation file there, as downloaded or converted from parquet?"""
    return file.is_file() or (file.suffix == ".parquet" and file.with_suffix(".json").is_file())


def write(file: Path, data: Any, count: int | None = None) -> str:
    """Write JSON whole or not at all, unless the file holds it already. Returns a line with its number of records."""
    text = json.dumps(data, ensure_ascii=False, indent=1)
    if not file.is_file() or file.read_text(encoding="utf-8") != text:
        with atomic_file(file) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return f"{file}: {len(data) if count is None else count} records"


def link(there: Mapping[str, Path], wanted: Sequence[str], folder: Path, report: Path) -> str:
    """Links in `folder` to the wanted files of those that are there; the names of the others go into `report`."""
    folder.mkdir(parents=True, exist_ok=True)
    lost = [name for name in wanted if name not in there]
    for name in wanted:
        target = folder / name
        if name in there and not target.exists():
            target.unlink(missing_ok=True)
            target.symlink_to(there[name].resolve())
    write(report, lost)
    return f"{folder}: {len(wanted) - len(lost)} of {len(wanted)} videos, {len(lost)} missing are named in {report}"


def instruct(
    questions: Iterable[Question], prompt: Callable[[Question], str], name: Callable[[Path], str]
) -> list[dict[str, Any]]:
    """Training records of the LLaVA family; `name` is what stands for a video in them."""
    return [
        {"id": one.qid.split("#")[0], "conversations": _turns(one, prompt(one)), "video": name(Path(one.video))}
        for one in questions
    ]


def _turns(question: Question, asked: str) -> list[dict[str, str]]:
    pairs = [*question.history, (asked, question.answers[0])]
    turns = [{"from": who, "value": text} for pair in pairs for who, text in zip(("human", "gpt"), pair)]
    turns[0]["value"] = f"<image>\n{turns[0]['value']}"
    return turns
