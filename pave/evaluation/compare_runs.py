"""`pave compare A B`: two runs on the same questions: intervals, a paired test, flipped answers. Without torch."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from pave.evaluation import run_folder, score
from pave.tasks.base import Task, get_task
from pave.tasks.metrics.aggregate import GROUP_SEPARATOR
from pave.types import Prediction, Question
from pave.utils import html as page
from pave.utils import plotting
from pave.utils.atomic import write_text
from pave.utils.tables import markdown

NUM_DRAWS = 10_000
"""Of clusters for an interval, and of signs for a test."""
COUNT_METRICS = {"n", "missing", "empty", "unparsed"}
"""Of questions, among the metrics."""


@dataclass(frozen=True)
class Row:
    """One metric, over all questions or one group; 95 % intervals over resampled videos."""

    what: str
    n: int
    a: float
    a_low: float
    a_high: float
    b: float
    b_low: float
    b_high: float
    difference: float
    """b - a"""
    low: float
    high: float
    p: float
    """Of a difference at least as large if the two runs were exchangeable, video by video."""


class Flip(NamedTuple):
    """A question that one run has right and the other has not."""

    qid: str
    better: str
    """`a` or `b`"""
    a: str
    b: str
    answers: tuple[str, ...]


class Comparison(NamedTuple):
    """What two runs differ in."""

    rows: list[Row]
    groups: list[Row]
    """Of the first metric."""
    flips: list[Flip]
    whole: dict[str, tuple[float, float]]
    """Metrics of a whole corpus, which no question has a share of: no interval."""


def main(a: Path, b: Path, task: str, split: str, root: Path, out: Path, seed: int = 0) -> str:
    """Compare two folders of `pave eval`; writes report.md, report.html, report.json and flips.jsonl.

    Raises UserError for missing answers.
    """
    benchmark = get_task(task)
    questions: list[Question] = benchmark.load(split, root)
    files = [run / run_folder.PREDICTIONS if run.is_dir() else run for run in (a, b)]
    one, other = (score.read_answers(file, questions, questions)[0] for file in files)
    compared = compare(benchmark, questions, one, other, seed)
    videos = len({q.video for q in questions})
    head = f"{len(questions)} questions of {task} {split} about {videos} videos"
    out.mkdir(parents=True, exist_ok=True)
    text = "\n".join(_report(compared, head, a, b))
    write_text(out / "report.md", text)
    write_text(out / "report.html", _page(compared, head, a, b, _plot(compared, out / "report.png")))
    write_text(out / "report.json", json.dumps(_as_json(compared), indent=1))
    write_text(out / "flips.jsonl", "".join(json.dumps(f._asdict(), ensure_ascii=False) + "\n" for f in compared.flips))
    return text


def compare(
    task: Task, questions: Sequence[Question], a: Mapping[str, Prediction], b: Mapping[str, Prediction], seed: int = 0
) -> Comparison:
    """Intervals and tests of every metric that is the mean of what single questions get."""
    pairs = [[(q, run.get(q.qid)) for q in questions] for run in (a, b)]
    totals = [task.score(run) for run in pairs]
    singles = [[task.score_each([pair]) for pair in tqdm(run, desc="score", unit="question")] for run in pairs]
    videos = np.unique([q.video for q in questions], return_inverse=True)[1]
    means = {name: v for name in totals[0] if (v := _shares(name, totals, singles)) is not None}
    rows = [_row(name, v, videos, seed) for name, v in means.items()]
    # What decides a question is the first metric that it has a share of.
    own = np.full((2, len(questions)), np.nan)
    for v in means.values():
        own = np.where(np.isnan(own), v, own)
    groups: dict[str, list[int]] = {}
    for i, question in enumerate(questions):
        for group in question.group.split(GROUP_SEPARATOR) if question.group else ():
            groups.setdefault(group, []).append(i)
    known = {group: i for group, i in groups.items() if not np.isnan(own[:, i]).all()}
    parts = [_row(group, own[:, i], videos[i], seed) for group, i in sorted(known.items())]
    flips = [
        Flip(q.qid, "b" if vb > va else "a", _text(a, q), _text(b, q), q.answers)
        for q, va, vb in zip(questions, *own)
        if va != vb and not np.isnan(va)
    ]
    whole = {name: (totals[0][name], totals[1][name]) for name in totals[0] if name not in means}
    return Comparison(rows, parts, flips, whole)


def _shares(
    name: str, totals: Sequence[Mapping[str, float]], singles: Sequence[Sequence[Mapping[str, float]]]
) -> np.ndarray | None:
    """float[2,n], what each question adds to a metric, NaN where nothing; None where the metric is not their mean."""
    if name in COUNT_METRICS:
        return None
    values = np.array([[one.get(name, np.nan) for one in run] for run in singles], float)
    if np.isnan(values).all():
        return None
    same = np.allclose(np.nanmean(values, 1), [total[name] for total in totals], rtol=0, atol=1e-9)
    return values if same else None


def _row(what: str, values: np.ndarray, videos: np.ndarray, seed: int) -> Row:
    """From float[2,n], what each question got in each run, and int[n], the video that it is about."""
    rng, there = np.random.default_rng(seed), ~np.isnan(values[0])
    values, videos = values[:, there], videos[there]
    clusters, which = np.unique(videos, return_inverse=True)
    sums = np.stack([np.bincount(which, v, len(clusters)) for v in values])
    sizes = np.bincount(which, minlength=len(clusters))
    # How often each video is drawn; the mean is of questions, so that videos with many of them weigh more.
    drawn = rng.multinomial(len(clusters), np.full(len(clusters), 1 / len(clusters)), NUM_DRAWS)
    a, b = (drawn @ sums.T / (drawn @ sizes)[:, None]).T
    changes = sums[1] - sums[0]
    signs = rng.integers(0, 2, (NUM_DRAWS, len(clusters)), dtype=np.int8) * 2 - 1
    as_large = np.abs(signs @ changes) >= abs(changes.sum()) - 1e-9
    intervals = [np.quantile(x, (0.025, 0.975)) for x in (a, b, b - a)]
    one, other = values.mean(1)
    bounds = [float(x) for interval in intervals for x in interval]
    p = float((as_large.sum() + 1) / (NUM_DRAWS + 1))
    return Row(what, values.shape[1], *map(float, (one, *bounds[:2], other, *bounds[2:4], other - one, *bounds[4:], p)))


def _text(run: Mapping[str, Prediction], question: Question) -> str:
    return run[question.qid].text if question.qid in run else ""


def _report(compared: Comparison, head: str, a: Path, b: Path) -> list[str]:
    better = sum(flip.better == "b" for flip in compared.flips)
    return [
        "# Two runs on the same questions",
        "",
        f"A: {a}",
        f"B: {b}",
        "",
        f"{head}. Brackets: 95 % of {NUM_DRAWS} draws of whole videos. p: {NUM_DRAWS} exchanges of A and B, video by video.",
        "",
        *_table(compared.rows, "metric"),
        "",
        *([*_table(compared.groups, "group"), ""] if compared.groups else []),
        f"{len(compared.flips)} answers flipped: {better} right in B only, {len(compared.flips) - better} in A only.",
        *(f"{name}: {x:.4f} and {y:.4f} (of the whole; no interval)" for name, (x, y) in compared.whole.items()),
        "",
    ]


def _cells(row: Row) -> list[str]:
    return [
        row.what,
        str(row.n),
        f"{row.a:.3f} [{row.a_low:.3f}, {row.a_high:.3f}]",
        f"{row.b:.3f} [{row.b_low:.3f}, {row.b_high:.3f}]",
        f"{row.difference:+.3f} [{row.low:+.3f}, {row.high:+.3f}]",
        f"{row.p:.4f}",
    ]


def _table(rows: Sequence[Row], first: str) -> list[str]:
    return markdown([first, "n", "A", "B", "B - A", "p"], list(map(_cells, rows)))


def _page(compared: Comparison, head: str, a: Path, b: Path, picture: Path) -> str:
    """One file that needs nothing from outside."""
    tables = [
        page.table(map(_cells, rows), ("", "n", "A", "B", "B - A", "p")) for rows in (compared.rows, compared.groups)
    ]
    flips = [(f.qid, f.better, f.a, f.b, " / ".join(f.answers)) for f in compared.flips[:200]]
    return page.page(
        "pave compare",
        f"<h1>Two runs on the same questions</h1><p>A: {html.escape(str(a))}<br>B: {html.escape(str(b))}</p>"
        f"<p>{head}</p>{tables[0]}<h2>By group</h2>{tables[1]}{page.picture(picture, 'Difference by group.')}"
        f"<h2>Flipped answers</h2><p>{len(compared.flips)} in all, at most 200 shown; flips.jsonl has them all.</p>"
        f"{page.table(flips, ('question', 'right', 'A', 'B', 'answers'))}",
    )


def _plot(compared: Comparison, file: Path) -> Path:
    """B - A with its interval, of every metric and group."""
    plotting.require_matplotlib(file)
    from matplotlib import pyplot

    rows = [*compared.rows, *compared.groups][::-1]
    figure, axes = pyplot.subplots(figsize=(7, 0.6 + 0.3 * max(len(rows), 1)), layout="constrained")
    for i, row in enumerate(rows):
        axes.plot([row.low, row.high], [i, i], color="#2a7f62", lw=2)
        axes.plot(row.difference, i, "o", color="#2a7f62")
    axes.axvline(0, color="#888", lw=1)
    axes.set_yticks(range(len(rows)), [row.what for row in rows])
    axes.set_xlabel("B - A, 95 % interval")
    axes.spines[["top", "right"]].set_visible(False)
    plotting.save_figure(figure, file, dpi=130)
    return file


def _as_json(compared: Comparison) -> dict[str, Any]:
    rows = {name: [asdict(row) for row in getattr(compared, name)] for name in ("rows", "groups")}
    return {**rows, "flips": len(compared.flips), "whole": compared.whole}
