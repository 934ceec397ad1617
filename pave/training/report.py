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
from pave.utils.atomic import atomic_file

LOG, FACTS, PAGE = "log.json", "run.json", "report.html"
APART = {"step", "seconds"}
"""Logged, but no measure of the training."""
PACKAGES = ("torch", "transformers", "peft", "accelerate")
Record = Mapping[str, Any]
"""What was logged at one step, by name."""


class Chart(NamedTuple):
    """Curves of one kind: all logged names that fit a pattern, whose group, if any, says whose it is."""

    title: str
    names: str
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
        "Loudness of the patch",
        "(.+)/loudness",
        "What a patch adds over the visual tokens as the LLM gets them (root mean squares). It starts at zero.",
        noisy=False,
    ),
    Chart("Preference", "preference/(.+)", "With dpo_beta: mean margin, and the share of pairs above zero."),
    Chart("Samples a second", "samples_per_second", "All processes, with waiting for data and with saving."),
    Chart("Tokens a second", "tokens_per_second", "Text and visual tokens, without padding."),
    Chart("Memory, GiB", "memory/(.+)_gib", "Peak until then, of the process that needs most.", noisy=False),
)


def facts(config: Config, settings: Mapping[str, Any], parameters: str, hardware: str) -> dict[str, Any]:
    """What a run is, for its page; `parameters` is the table of train.describe."""
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "hardware": hardware,
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": ", ".join([f"pave {__version__}", *(f"{p} {importlib.metadata.version(p)}" for p in PACKAGES)]),
        "tasks": list(config.data.mixture) or [config.data.task],
        "settings": dict(settings),
        "parameters": parameters,
        "config": dump(config),
    }


def begin(out: Path, found: Mapping[str, Any], resumed: bool) -> None:
    """Write what a run is, and when it began; a resumed one keeps the times before."""
    before = _read(out / FACTS)["started"] if resumed and (out / FACTS).is_file() else []
    started = [*before, time.strftime("%Y-%m-%d %H:%M:%S")]
    _write(out / FACTS, json.dumps({**found, "started": started}, indent=1, default=str))


def write(out: Path, history: Sequence[Record]) -> None:
    """The log of a run and its page."""
    _write(out / LOG, json.dumps(history, indent=1))
    main(out)


def main(out: Path) -> str:
    """Make the page of a run from its files; returns where it is. Raises UserError where no run has written."""
    if not (out / LOG).is_file():
        raise UserError(f"{out}: no {LOG} in it; expected the folder of a `pave train` that has saved at least once")
    run = _read(out / FACTS) if (out / FACTS).is_file() else {}
    history = _read(out / LOG)
    records = [record for record in history if "loss" in record]
    title = f"Training on {_listed(run['tasks'])}" if run else f"Training in {out.name}"
    body = [f"<h1>{escape(title)}</h1>", html.table(_facts(run, records))]
    body += ['<div class="charts">', *_charts(run, records), "</div>"]
    names = [name for name in dict.fromkeys(name for record in records for name in record) if name not in APART]
    rows = [(name, *_numbers(_curves(records, re.escape(name))[""])) for name in names]
    head = ("", "first", "last", "lowest", "highest", "not finite")
    body += ["<h2>Numbers</h2>", html.table(rows, head, numbers=True)]
    if run:
        body += ["<h2>What trains</h2>", f"<pre>{escape(run['parameters'])}</pre>"]
        body += ["<h2>Training arguments</h2>", html.table(run["settings"].items())]
        body += ["<h2>Config</h2>", f"<pre>{escape(run['config'])}</pre>"]
    _write(out / PAGE, html.page(title, "\n".join(body)))
    return str(out / PAGE)


def _facts(run: Record, records: Sequence[Record]) -> list[tuple[str, str]]:
    """What stands at the top of the page."""
    if not records:
        return [("steps", "none logged yet")]
    last = records[-1]
    tail = [record["loss"] for record in records[-max(1, len(records) // 10) :]]
    rows = [("steps", f"{last['step']} of {run['steps']}" if run else f"{last['step']}")]
    rows.append(("epochs", f"{last['epoch']:.2f}"))
    rows.append(("loss", f"{records[0]['loss']:.4g} at first, {sum(tail) / len(tail):.4g} over the last tenth"))
    timed = [record for record in records if "seconds" in record]
    if timed:
        seconds = round(sum(record["seconds"] for record in timed))
        samples = sum(record["seconds"] * record["samples_per_second"] for record in timed)
        text = f"{seconds // 3600} h {seconds // 60 % 60} min {seconds % 60} s for {samples:,.0f} samples"
        rows.append(("time", f"{text}, up to the last record"))
    if run:
        began, *again = run["started"]
        rows.append(("began", began + "".join(f", resumed {at}" for at in again)))
        rows += [(name, run[name]) for name in ("hardware", "system", "versions", "command")]
    return rows


def _charts(run: Record, records: Sequence[Record]) -> list[str]:
    """Every chart that has a curve; a part of the model has one colour in all of them."""
    parts = list(_curves(records, "(.+)/learning_rate"))
    drawn = []
    for chart in CHARTS:
        curves = _curves(records, chart.names)
        if chart.title == "Learning rate" and parts:
            # The Trainer's own is that of the first part.
            del curves["all"]
        good = {n: [(x, y) for x, y in ps if math.isfinite(y) and (y > 0 or not chart.log)] for n, ps in curves.items()}
        kept = {name: points for name, points in good.items() if points}
        colors = {n: 1 + (parts.index(n) if n in parts else i) % 5 for i, n in enumerate(kept)}
        if len(kept) > 1 and "all" in kept:
            colors["all"] = 0
        clip = run["settings"]["max_grad_norm"] if run and chart.title == "Gradient norm" else 0
        if kept:
            drawn.append(
                html.chart(chart.title, chart.text, kept, colors, log=chart.log, noisy=chart.noisy, level=clip or None)
            )
    return drawn


def _curves(records: Sequence[Record], names: str) -> dict[str, list[tuple[float, float]]]:
    """(step, value) of all logged names that fit a pattern, by what its group found; without one, all are one."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        for key, value in record.items():
            if found := re.fullmatch(names, key):
                name = _shown(found[1] or "all") if found.re.groups else ""
                curves.setdefault(name, []).append((record["step"], value))
    return curves


def _shown(part: str) -> str:
    return {"lora": "LoRA", "gpu": "GPU", "process": "process (RAM)"}.get(part, part.replace("/", " "))


def _numbers(points: Sequence[tuple[float, float]]) -> list[str]:
    finite = [y for _, y in points if math.isfinite(y)] or [math.nan]
    values = (points[0][1], points[-1][1], min(finite), max(finite))
    return [*(f"{x:.4g}" for x in values), str(sum(not math.isfinite(y) for _, y in points))]


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{file}: not JSON ({error}); expected what `pave train` wrote") from error


def _write(file: Path, text: str) -> None:
    with atomic_file(file) as temporary:
        temporary.write_text(text, encoding="utf-8")
