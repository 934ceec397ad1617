"""`pave doctor`: check a folder of features and a data set before a run starts."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pave.data import extraction
from pave.data.dataset import media_paths
from pave.media import feature_files
from pave.sides.base import SideChannel
from pave.tasks.base import get_task
from pave.types import MissingAnnotations, Question, UserError
from pave.utils import registry
from pave.utils.atomic import write_text
from pave.utils.json_files import read_json

log = logging.getLogger(__name__)
INDEX = "index.jsonl"
MAX_NAMES = 3
"""Of each kind of problem in the report; the index has all."""


@dataclass
class Report:
    """Lines for people, and how many problems they name."""

    lines: list[str] = field(default_factory=list)
    problems: int = 0

    def add_problem(self, line: str) -> None:
        """Add a line that is a problem."""
        self.problems += 1
        self.lines.append(line)

    def add_count(self, label: str, names: Sequence[str], total: int) -> None:
        """Add a line about those of `total` things that are problems."""
        self.problems += len(names)
        shown = ""
        if names:
            shown = f": {', '.join(names[:MAX_NAMES])}{', ...' if len(names) > MAX_NAMES else ''}"
        self.lines.append(f"{label:<28}{len(names):>8} of {total}{shown}")


def check_store(out: Path, side: str | None = None, source: Path | None = None, dim: int | None = None) -> Report:
    """Read every feature file of a folder, ours or official .pt files, and write its index.

    `source` is what was extracted, `dim` the expected width (None: the most common). Raises UserError: nothing to
    check, or a side-channel that is not pave's and that only the folder names.
    """
    manifest_file = out / extraction.MANIFEST
    manifest = (
        read_json(manifest_file, extraction.EXPECTED, extraction.MANIFEST_KEYS) if manifest_file.is_file() else {}
    )
    if not (side or manifest):
        raise UserError(f"{out}: no {extraction.MANIFEST}; say with --side what published features these are")
    if not side and not registry.is_shipped("sides", manifest["side"]):
        raise UserError(
            f"{out}: its {extraction.MANIFEST} names the plugin {manifest['side']!r}, code from outside pave that "
            "would run; if you trust it, name it with --side"
        )
    channel = extraction.side_to_extract(side or manifest["side"])
    our_files = sorted(out.rglob("*.safetensors"))
    files = our_files or sorted(out.rglob("*.pt"))
    if not files:
        raise UserError(f"{out}: no feature files; run `pave extract` first")

    rows = [_index_row(file, out, channel) for file in tqdm(files, desc="check", unit="file")]
    widths = Counter(row["shape"][-1] for row in rows if "shape" in row)
    expected_width = dim or (widths.most_common(1)[0][0] if widths else 0)
    for row in rows:
        if "shape" in row and row["shape"][-1] != expected_width:
            row["problem"] = f"width {row['shape'][-1]}, expected {expected_width}"

    report = Report([f"{out}: {len(rows)} files, width {expected_width}"])
    broken = [f"{row['name']} ({row['problem']})" for row in rows if "problem" in row]
    report.add_count("broken, NaN or odd", broken, len(rows))
    if manifest and our_files:
        keys = ("extractor", "options", "weights")
        # A file that could not be read states none of them.
        changed = [row["name"] for row in rows if any(row.get(key, manifest[key]) != manifest[key] for key in keys)]
        report.add_count("made in another way", changed, len(rows))
    if source:
        items, names = extraction.list_items(channel, source), {row["name"] for row in rows}
        report.add_count("missing", [item.name for item in items if item.name not in names], len(items))
        stale = [item.name for item in items if item.name in names and not extraction.is_extracted(out, item)]
        report.add_count("stale (source changed)", stale if our_files else [], len(items))

    write_text(out / INDEX, "".join(json.dumps(row) + "\n" for row in rows))
    return report


def _index_row(file: Path, out: Path, side: SideChannel) -> dict[str, Any]:
    """A line of the index; `problem` where there is one."""
    row: dict[str, Any] = {"name": file.relative_to(out).with_suffix("").as_posix()}
    try:
        tokens = side.load(file)
        row["shape"] = list(tokens.x.shape)
        if tokens.seconds is not None:
            row["seconds"] = [round(seconds, 3) for seconds in tokens.seconds[[0, -1]].tolist()]
        if file.suffix != ".pt":
            row["dtype"] = feature_files.stored_dtype(file)
            origin = asdict(feature_files.read_meta(file))
            for key in ("extractor", "options", "weights", "source", "source_bytes", "source_sha256"):
                row[key] = origin[key]

        feature_files.check_tokens(tokens, file, tokens.x.shape[-1])
        problem = side.suspicion(tokens.x)
    except UserError as error:
        problem = str(error).removeprefix(f"{file}: ")
    return {**row, "problem": problem} if problem else row


def check_task(
    task: str, root: Path, splits: Sequence[str] = (), store_folder: Path | None = None, check_videos: bool = True
) -> Report:
    """Check the annotations, videos and, in `store_folder`, features of splits; by default of all there are."""
    benchmark = get_task(task)
    report, absent_splits = Report(), []
    for split in splits or benchmark.splits:
        try:
            questions = benchmark.load(split, root)
        except MissingAnnotations as error:
            absent_splits.append(f"{split}: {error}")
        except UserError as error:
            report.add_problem(f"{split}: {error}")
        else:
            videos = sorted({question.video for question in questions})
            report.lines.append(f"{split}: {len(questions)} questions about {len(videos)} videos")
            expected_count = benchmark.expected_counts.get(split, len(questions))
            if len(questions) != expected_count:
                report.add_problem(f"  {len(questions)} questions, expected {expected_count}")
            for line in benchmark.check(split, root):
                report.add_problem(f"  {line}")
            _check_files(report, questions, root, store_folder, videos if check_videos else [])

    # Without any split asked for, those that are absent are no problem, unless all are.
    if splits or not report.lines:
        for line in absent_splits:
            report.add_problem(line)
    return report


def _check_files(
    report: Report, questions: Sequence[Question], root: Path, store_folder: Path | None, videos: Sequence[str]
) -> None:
    """Add what is wrong with the files of questions: outside the root, as `pave train` would refuse, or missing."""
    outside = []
    for question in questions:
        try:
            media_paths(question, root)
        except UserError as error:
            outside.append(str(error))
    if outside:
        report.add_count("  outside the root", outside, len(questions))

    if videos:
        report.add_count("  videos missing", [video for video in videos if not (root / video).exists()], len(videos))
    if store_folder:
        files = {feature_files.feature_file(store_folder, question) for question in questions}
        missing = sorted(file.relative_to(store_folder).as_posix() for file in files if not file.exists())
        report.add_count("  features missing", missing, len(files))
