"""`pave report OUT`: a training run as one page, from what `pave train` has written. Without torch."""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
import re
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from pave import __version__
from pave.config import Config, dump
from pave.types import UserError
from pave.utils import html
from pave.utils.atomic import write_text
from pave.utils.json_files import read_json, read_json_value

LOG_FILE, RUN_FILE, PAGE_FILE = "log.json", "run.json", "report.html"
NOT_CHARTED = {"step", "seconds"}
"""Logged, but no measure of the training."""
PACKAGES = ("torch", "transformers", "peft", "accelerate")
WRITTEN_BY = "what `pave train` wrote"
"""What a file of a run is expected to be."""
RENAMED_METRICS = {
    "(.+)/loudness": r"\1/relative_magnitude",
    "preference/right": "preference/accuracy",
    "lesson/(.+)": r"distillation_head/\1",
}
"""Patterns of the names of metrics in logs of version 0.1, and their present names."""
Record = Mapping[str, float]
"""What was logged at one step, by name."""
Points = list[tuple[float, float]]
"""(step, value) of one curve."""


class Chart(NamedTuple):
    """A chart of all metrics whose name matches a pattern; its group, if any, is the name of the curve."""

    title: str
    pattern: str
    text: str
    log: bool = False
    noisy: bool = True


CHARTS = (
    Chart("Loss", "loss", "Mean since the record before."),
    Chart("Learning rate", "(?:(.+)/)?learning_rate", "That the step was made with.", noisy=False),
    Chart(
        "Gradient norm",
        "(?:(.+)/)?grad_norm",
        "Before clipping; the dashed line is where clipping begins (train.max_grad_norm, on all together).",
        log=True,
    ),
    Chart(
        "Update norm", "(.+)/update_norm", "Length of a step over the length of the weights that it changes.", log=True
    ),
    Chart(
        "Relative magnitude of the patch",
        "(.+)/relative_magnitude",
        "What a patch adds over the visual tokens as the LLM gets them (root mean squares). It starts at zero.",
        noisy=False,
    ),
    Chart("Preference", "preference/(.+)", "With dpo_beta: mean margin, and the share of pairs above zero."),
    Chart("Samples a second", "samples_per_second", "All processes, with waiting for data and with saving."),
    Chart("Tokens a second", "tokens_per_second", "Text and visual tokens, without padding."),
    Chart("Memory, GiB", "memory/(.+)_gib", "Peak until then, of the process that needs most.", noisy=False),
)


def run_facts(config: Config, settings: Mapping[str, object], parameters: str, hardware: str) -> dict[str, object]:
    """Describe a run for its page; `parameters` is the table of trainable.describe."""
    versions = [f"pave {__version__}", *(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)]
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "hardware": hardware,
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": ", ".join(versions),
        "tasks": list(config.data.mixture) or [config.data.task],
        "settings": dict(settings),
        "parameters": parameters,
        "config": dump(config),
    }


def write_run_facts(out: Path, facts: Mapping[str, object], is_resumed: bool) -> None:
    """Write what a run is and when it started; a resumed run keeps its earlier starts."""
    file = out / RUN_FILE
    earlier_starts = read_json(file, WRITTEN_BY, ["started"])["started"] if is_resumed and file.is_file() else []
    starts = [*earlier_starts, time.strftime("%Y-%m-%d %H:%M:%S")]
    write_text(file, json.dumps({**facts, "started": starts}, indent=1, default=str))


def write_report(out: Path, history: Sequence[Record]) -> None:
    """Write the log of a run and its page."""
    write_text(out / LOG_FILE, json.dumps(history, indent=1))
    render_report(out)


def render_report(out: Path) -> str:
    """Render the page of a run from its files and return its path.

    Raises UserError where no run has written, or where a file is damaged.
    """
    if not (out / LOG_FILE).is_file():
        raise UserError(
            f"{out}: no {LOG_FILE} in it; expected the folder of a `pave train` that has saved at least once"
        )
    run = read_json(out / RUN_FILE, WRITTEN_BY, ["started"]) if (out / RUN_FILE).is_file() else {}
    records = _read_records(out / LOG_FILE)

    title = f"Training on {_join_names(run['tasks'])}" if run else f"Training in {out.name}"
    body = [f"<h1>{escape(title)}</h1>", html.table(_summary(run, records))]
    body += ['<div class="charts">', *_charts(run, records), "</div>"]
    body += ["<h2>Numbers</h2>", _numbers_table(records)]
    if run:
        body += ["<h2>What trains</h2>", f"<pre>{escape(run['parameters'])}</pre>"]
        body += ["<h2>Training arguments</h2>", html.table(run["settings"].items())]
        body += ["<h2>Config</h2>", f"<pre>{escape(run['config'])}</pre>"]

    write_text(out / PAGE_FILE, html.page(title, "\n".join(body)))
    return str(out / PAGE_FILE)


def _read_records(file: Path) -> list[Record]:
    """The records of steps, under the present names of their metrics."""
    history = read_json_value(file, WRITTEN_BY)
    if not isinstance(history, list) or not all(isinstance(record, dict) for record in history):
        raise UserError(f"{file}: is no list of records; expected {WRITTEN_BY}")
    steps = [record for record in history if "loss" in record]
    return [{_present_name(name): value for name, value in record.items()} for record in steps]


def _present_name(name: str) -> str:
    for pattern, replacement in RENAMED_METRICS.items():
        name = re.sub(f"^{pattern}$", replacement, name)
    return name


def _summary(run: Mapping[str, Any], records: Sequence[Record]) -> list[tuple[str, str]]:
    """The rows at the top of the page."""
    if not records:
        return [("steps", "none logged yet")]

    last = records[-1]
    last_losses = [record["loss"] for record in records[-max(1, len(records) // 10) :]]
    mean_loss = sum(last_losses) / len(last_losses)
    rows = [
        ("steps", f"{last['step']} of {run['steps']}" if run else f"{last['step']}"),
        ("epochs", f"{last['epoch']:.2f}"),
        ("loss", f"{records[0]['loss']:.4g} at first, {mean_loss:.4g} over the last tenth"),
    ]

    timed = [record for record in records if "seconds" in record]
    if timed:
        seconds = round(sum(record["seconds"] for record in timed))
        samples = sum(record["seconds"] * record["samples_per_second"] for record in timed)
        duration = f"{seconds // 3600} h {seconds // 60 % 60} min {seconds % 60} s"
        rows.append(("time", f"{duration} for {samples:,.0f} samples, up to the last record"))

    if run:
        start, *resumes = run["started"]
        rows.append(("began", start + "".join(f", resumed {resume}" for resume in resumes)))
        rows += [(name, run[name]) for name in ("hardware", "system", "versions", "command")]
    return rows


def _charts(run: Mapping[str, Any], records: Sequence[Record]) -> list[str]:
    """Every chart that has a curve; a part of the model has the same colour in all of them."""
    parts = list(_curves(records, "(.+)/learning_rate"))
    charts = []
    for chart in CHARTS:
        curves = {}
        for name, points in _curves(records, chart.pattern).items():
            drawable = [(x, y) for x, y in points if math.isfinite(y) and (y > 0 or not chart.log)]
            if drawable:
                curves[name] = drawable
        if chart.title == "Learning rate" and parts:
            # The Trainer's own rate is that of the first part: it would be drawn twice.
            curves.pop("all", None)
        if not curves:
            continue

        colors = {name: 1 + (parts.index(name) if name in parts else i) % 5 for i, name in enumerate(curves)}
        if len(curves) > 1 and "all" in curves:
            colors["all"] = 0
        clip = run["settings"]["max_grad_norm"] if run and chart.title == "Gradient norm" else None
        svg = html.line_chart(
            chart.title, chart.text, curves, colors, log=chart.log, noisy=chart.noisy, level=clip or None
        )
        charts.append(svg)
    return charts


def _curves(records: Sequence[Record], pattern: str) -> dict[str, Points]:
    """The curves of all metrics that match a pattern, by what its group matched; without a group they are one curve."""
    curves: dict[str, Points] = {}
    for record in records:
        for metric, value in record.items():
            if match := re.fullmatch(pattern, metric):
                name = _curve_name(match[1] or "all") if match.re.groups else ""
                curves.setdefault(name, []).append((record["step"], value))
    return curves


def _curve_name(part: str) -> str:
    return {"lora": "LoRA", "gpu": "GPU", "process": "process (RAM)"}.get(part, part.replace("/", " "))


def _numbers_table(records: Sequence[Record]) -> str:
    """First, last, lowest and highest value of every metric."""
    names = dict.fromkeys(name for record in records for name in record if name not in NOT_CHARTED)
    rows = []
    for name in names:
        values = [record[name] for record in records if name in record]
        finite = [value for value in values if math.isfinite(value)]
        lowest, highest = (min(finite), max(finite)) if finite else (math.nan, math.nan)
        numbers = [f"{value:.4g}" for value in (values[0], values[-1], lowest, highest)]
        rows.append((name, *numbers, str(len(values) - len(finite))))
    return html.table(rows, ("", "first", "last", "lowest", "highest", "not finite"), numbers=True)


def _join_names(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)
