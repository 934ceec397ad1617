"""Write the files that the official code makes of raw annotations; a second run changes nothing that is there."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pave.tasks._annotations import annotations_exist
from pave.tasks.base import Task
from pave.types import Question, UserError
from pave.utils.atomic import atomic_file


def prepare_splits(raw: Path, files: Mapping[str, str], prepare: Mapping[str, Callable[[], list[str]]]) -> list[str]:
    """Prepare each split whose annotations are below `raw`; lines to print. Raises UserError where there are none."""
    present = {split for split in prepare if annotations_exist(raw / files[split])}
    if not present:
        names = ", ".join(files[split] for split in prepare)
        raise UserError(f"{raw}: none of {names}; download at least one (the task's page in doc/datasets says where)")

    lines: list[str] = []
    for split, prepare_split in prepare.items():
        lines += prepare_split() if split in present else [f"{split}: left out, {files[split]} is not there"]
    return lines


def write_json(file: Path, data: Sequence[object] | Mapping[str, object], count: int | None = None) -> str:
    """Write JSON completely or not at all, unless the file holds it already; a line with its number of records."""
    text = json.dumps(data, ensure_ascii=False, indent=1)
    if not file.is_file() or file.read_text(encoding="utf-8") != text:
        with atomic_file(file) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return f"{file}: {len(data) if count is None else count} records"


def link_videos(available: Mapping[str, Path], names: Sequence[str], folder: Path, report: Path) -> str:
    """Link the named files in `folder`, and write the names of those that are not available into `report`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        link = folder / name
        if name in available and not link.exists():
            # A link whose file has moved does not exist, but is in the way.
            link.unlink(missing_ok=True)
            link.symlink_to(available[name].resolve())

    missing = [name for name in names if name not in available]
    write_json(report, missing)
    linked = f"{len(names) - len(missing)} of {len(names)} videos"
    return f"{folder}: {linked}, {len(missing)} missing are named in {report}"


def write_training_records(
    task: Task, split: str, raw: Path, out: Path, video_name: Callable[[Path], str], numeric_ids: bool = False
) -> list[str]:
    """Write the questions of a split as training records of the LLaVA family, in the file of `<split>_prepared`.

    `video_name` makes the name of the video in a record of its path.
    """
    records = []
    for question in task.load(split, raw):
        qid = question.qid.split("#")[0]
        records.append(
            {
                "id": int(qid) if numeric_ids else qid,
                "conversations": _turns(question, task.prompt(question)),
                "video": video_name(Path(question.video)),
            }
        )
    return [write_json(out / task.files[f"{split}_prepared"], records)]


def _turns(question: Question, prompt: str) -> list[dict[str, str]]:
    """Turns of a conversation, with the tag of the video at the head of the first."""
    turns = []
    for text, answer in (*question.history, (prompt, question.answers[0])):
        turns += [{"from": "human", "value": text}, {"from": "gpt", "value": answer}]
    turns[0]["value"] = f"<image>\n{turns[0]['value']}"
    return turns
