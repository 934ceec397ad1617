"""`pave doctor`: what a store of features and a data set lack, before a run starts."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
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
SHOWN = 3
"""Names of each kind of problem in the report; the index has all."""


@dataclass
class Report:
    """Lines to read, and how many problems they name."""

    lines: list[str] = field(default_factory=list)
    problems: int = 0

    def add(self, line: str) -> None:
        """A line that is a problem."""
        self.problems += 1
        self.lines.append(line)

    def count(self, what: str, names: Sequence[str], of: int) -> None:
        """One line; names are problems."""
        self.problems += len(names)
        shown = f": {', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}" if names else ""
        self.lines.append(f"{what:<28}{len(names):>8} of {of}{shown}")


def check_store(out: Path, side: str | None = None, source: Path | None = None, dim: int | None = None) -> Report:
    """Read every feature file of a store, ours or published .pt files, and write its index.

    `source` is what was extracted, `dim` the width expected (None: the commonest). UserError: nothing to check, or a
    side that is not pave's and that only the store names.
    """
    manifest_file = out / extraction.MANIFEST
    manifest = read_json(manifest_file, extraction.EXPECTED, ["side"]) if manifest_file.is_file() else {}
    if not (side or manifest):
        raise UserError(f"{out}: no {extraction.MANIFEST}; say with --side what published features these are")
    if not side and not registry.is_shipped("sides", manifest["side"]):
        raise UserError(
            f"{out}: its {extraction.MANIFEST} names the plugin {manifest['side']!r}, code from outside pave that "
            "would run; if you trust it, name it with --side"
        )
    channel = extraction.side_to_extract(side or manifest["side"])
    ours = sorted(out.rglob("*.safetensors"))
    files = ours or sorted(out.rglob("*.pt"))
    if not files:
        raise UserError(f"{out}: no feature files; run `pave extract` first")
    rows = [_row(file, out, channel) for file in tqdm(files, desc="check", unit="file")]
    widths = Counter(row["shape"][-1] for row in rows if "shape" in row)
    expected = dim or (widths.most_common(1)[0][0] if widths else 0)
    for row in rows:
        if "shape" in row and row["shape"][-1] != expected:
            row["problem"] = f"width {row['shape'][-1]}, expected {expected}"
    report = Report([f"{out}: {len(rows)} files, width {expected}"])
    report.count(
        "broken, NaN or odd", [f"{row['name']} ({row['problem']})" for row in rows if "problem" in row], len(rows)
    )
    if manifest and ours:
        made = {k: manifest[k] for k in ("extractor", "options", "weights")}
        other = [row["name"] for row in rows if any(row.get(k, v) != v for k, v in made.items())]
        report.count("made in another way", other, len(rows))
    if source:
        items, known = extraction.list_items(channel, source), {row["name"] for row in rows}
        report.count("missing", [item.name for item in items if item.name not in known], len(items))
        stale = [item.name for item in items if item.name in known and not extraction.is_extracted(out, item)]
        report.count("stale (source changed)", stale if ours else [], len(items))
    write_text(out / INDEX, "".join(json.dumps(row) + "\n" for row in rows))
    return report


def _row(file: Path, out: Path, side: SideChannel) -> dict[str, Any]:
    """A line of the index; `problem` where there is one."""
    row: dict[str, Any] = {"name": file.relative_to(out).with_suffix("").as_posix()}
    try:
        tokens = side.load(file)
        row |= {"shape": list(tokens.x.shape)}
        if tokens.seconds is not None:
            row["seconds"] = [round(s, 3) for s in (tokens.seconds[0].item(), tokens.seconds[-1].item())]
        if file.suffix != ".pt":
            made = feature_files.read_meta(file)
            names = ("extractor", "options", "weights", "source", "source_bytes", "source_sha256")
            row |= {"dtype": feature_files.dtype(file), **{k: getattr(made, k) for k in names}}
        feature_files.check(tokens, file, tokens.x.shape[-1])
        problem = side.suspicion(tokens.x)
    except UserError as error:
        problem = str(error).removeprefix(f"{file}: ")
    return {**row, "problem": problem} if problem else row


def check_task(
    task: str, root: Path, splits: Sequence[str] = (), store_folder: Path | None = None, check_videos: bool = True
) -> Report:
    """Per split: annotations unreadable, too few or lead out of `root`, missing videos and, of a store, features.

    Without `splits` those that are there; none is a problem.
    """
    from pave.media.feature_files import feature_file

    benchmark = get_task(task)
    report, absent = Report(), []
    for split in splits or benchmark.splits:
        try:
            questions = benchmark.load(split, root)
        except MissingAnnotations as error:
            absent.append(f"{split}: {error}")
            continue
        except UserError as error:
            report.add(f"{split}: {error}")
            continue
        videos = sorted({question.video for question in questions})
        report.lines.append(f"{split}: {len(questions)} questions about {len(videos)} videos")
        expected = benchmark.expected_counts.get(split, len(questions))
        if len(questions) != expected:
            report.add(f"  {len(questions)} questions, expected {expected}")
        for line in benchmark.check(split, root):
            report.add(f"  {line}")
        if outside := [line for question in questions for line in _outside(question, root)]:
            report.count("  outside the root", outside, len(questions))
        if check_videos:
            report.count("  videos missing", [v for v in videos if not (root / v).exists()], len(videos))
        if store_folder:
            wanted = {feature_file(store_folder, question) for question in questions}
            lost = sorted(f.relative_to(store_folder).as_posix() for f in wanted if not f.exists())
            report.count("  features missing", lost, len(wanted))
    if splits or not report.lines:
        for line in absent:
            report.add(line)
    return report


def _outside(question: Question, root: Path) -> list[str]:
    """What is wrong with where a question's files are: what `pave train` would refuse."""
    try:
        media_paths(question, root)
    except UserError as error:
        return [str(error)]
    return []
