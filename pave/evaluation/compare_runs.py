"""`pave compare A B`: two runs on the same questions: intervals, a paired test, flipped answers. Without torch."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

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
"""Resamples for an interval, and sign flips for a test."""
COUNT_METRICS = {"n", "missing", "empty", "unparsed"}
"""Metrics that count questions."""
COLUMNS = ("n", "A", "B", "B - A", "p")
MAX_SHOWN_FLIPS = 200


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
    """Probability of a difference at least as large if the two runs were exchangeable, video by video."""


class Flip(NamedTuple):
    """A question that only one of the runs answers right."""

    qid: str
    better: str
    """`a` or `b`"""
    a: str
    b: str
    answers: tuple[str, ...]


class Comparison(NamedTuple):
    """The differences between two runs."""

    rows: list[Row]
    groups: list[Row]
    """By group of questions, of the first metric."""
    flips: list[Flip]
    whole: dict[str, tuple[float, float]]
    """Metrics of a whole corpus, of which a question has no share: no interval."""


def main(a: Path, b: Path, task: str, split: str, root: Path, out: Path, seed: int = 0) -> str:
    """Compare two folders of `pave eval`; write report.md, report.html, report.json, report.png and flips.jsonl.

    Raises UserError for missing answers.
    """
    plugin = get_task(task)
    questions = plugin.load(split, root)
    runs = []
    for run in (a, b):
        file = run / run_folder.PREDICTIONS if run.is_dir() else run
        runs.append(score.read_answers(file, questions, questions).by_qid)
    comparison = compare(plugin, questions, runs[0], runs[1], seed)

    num_videos = len({question.video for question in questions})
    head = f"{len(questions)} questions of {task} {split} about {num_videos} videos"
    text = "\n".join(_report(comparison, head, a, b))
    out.mkdir(parents=True, exist_ok=True)
    _plot(comparison, out / "report.png")
    write_text(out / "report.md", text)
    write_text(out / "report.html", _page(comparison, head, a, b, out / "report.png"))
    write_text(out / "report.json", json.dumps(_as_json(comparison), indent=1))
    lines = [json.dumps(flip._asdict(), ensure_ascii=False) + "\n" for flip in comparison.flips]
    write_text(out / "flips.jsonl", "".join(lines))
    return text


def compare(
    task: Task, questions: Sequence[Question], a: Mapping[str, Prediction], b: Mapping[str, Prediction], seed: int = 0
) -> Comparison:
    """Compute intervals and tests of every metric that is a mean over questions."""
    pairs = [[(question, run.get(question.qid)) for question in questions] for run in (a, b)]
    totals = [task.score(run) for run in pairs]
    singles = [[task.score_each([pair]) for pair in tqdm(run, desc="score", unit="question")] for run in pairs]
    videos = np.unique([question.video for question in questions], return_inverse=True)[1]

    means: dict[str, np.ndarray] = {}
    for name in totals[0]:
        values = _question_values(name, totals, singles)
        if values is not None:
            means[name] = values
    rows = [_row(name, values, videos, seed) for name, values in means.items()]

    # A question is decided by the first metric that it has a share of.
    decisive = np.full((2, len(questions)), np.nan)
    for values in means.values():
        decisive = np.where(np.isnan(decisive), values, decisive)

    flips = []
    for question, value_a, value_b in zip(questions, *decisive):
        if value_a != value_b and not np.isnan(value_a):
            texts = [run[question.qid].text if question.qid in run else "" for run in (a, b)]
            flips.append(Flip(question.qid, "b" if value_b > value_a else "a", texts[0], texts[1], question.answers))

    corpus_metrics = {name: (totals[0][name], totals[1][name]) for name in totals[0] if name not in means}
    return Comparison(rows, _group_rows(questions, decisive, videos, seed), flips, corpus_metrics)


def _question_values(
    name: str, totals: Sequence[Mapping[str, float]], singles: Sequence[Sequence[Mapping[str, float]]]
) -> np.ndarray | None:
    """float[2,n], the share of each question in a metric, NaN if it has none; None if the metric is not their mean."""
    if name in COUNT_METRICS:
        return None
    values = np.array([[scores.get(name, np.nan) for scores in run] for run in singles], float)
    if np.isnan(values).all():
        return None
    is_mean = np.allclose(np.nanmean(values, 1), [total[name] for total in totals], rtol=0, atol=1e-9)
    return values if is_mean else None


def _group_rows(questions: Sequence[Question], values: np.ndarray, videos: np.ndarray, seed: int) -> list[Row]:
    """One row for each group that has values; a question may be in several."""
    groups: dict[str, list[int]] = {}
    for i, question in enumerate(questions):
        for group in question.group.split(GROUP_SEPARATOR) if question.group else ():
            groups.setdefault(group, []).append(i)
    return [
        _row(group, values[:, indices], videos[indices], seed)
        for group, indices in sorted(groups.items())
        if not np.isnan(values[:, indices]).all()
    ]


def _row(name: str, values: np.ndarray, videos: np.ndarray, seed: int) -> Row:
    """Intervals and test from float[2,n], the values of both runs, and int[n], the video of each question."""
    rng = np.random.default_rng(seed)
    has_value = ~np.isnan(values[0])
    values, videos = values[:, has_value], videos[has_value]
    clusters, index = np.unique(videos, return_inverse=True)
    sums = np.stack([np.bincount(index, run, len(clusters)) for run in values])
    sizes = np.bincount(index, minlength=len(clusters))

    # Videos are resampled, but the mean is over questions, so that videos with many of them weigh more.
    draws = rng.multinomial(len(clusters), np.full(len(clusters), 1 / len(clusters)), NUM_DRAWS)
    a_means, b_means = (draws @ sums.T / (draws @ sizes)[:, None]).T
    intervals = [np.quantile(x, (0.025, 0.975)).tolist() for x in (a_means, b_means, b_means - a_means)]

    changes = sums[1] - sums[0]
    signs = rng.integers(0, 2, (NUM_DRAWS, len(clusters)), dtype=np.int8) * 2 - 1
    is_as_large = np.abs(signs @ changes) >= abs(changes.sum()) - 1e-9

    a, b = values.mean(1).tolist()
    return Row(
        what=name,
        n=values.shape[1],
        a=a,
        a_low=intervals[0][0],
        a_high=intervals[0][1],
        b=b,
        b_low=intervals[1][0],
        b_high=intervals[1][1],
        difference=b - a,
        low=intervals[2][0],
        high=intervals[2][1],
        p=float((is_as_large.sum() + 1) / (NUM_DRAWS + 1)),
    )


def _report(comparison: Comparison, head: str, a: Path, b: Path) -> list[str]:
    """Lines of Markdown."""
    num_better = sum(flip.better == "b" for flip in comparison.flips)
    num_worse = len(comparison.flips) - num_better
    lines = [
        "# Two runs on the same questions",
        "",
        f"A: {a}",
        f"B: {b}",
        "",
        f"{head}. Brackets: 95 % of {NUM_DRAWS} draws of whole videos. "
        f"p: {NUM_DRAWS} exchanges of A and B, video by video.",
        "",
        *markdown(["metric", *COLUMNS], [_cells(row) for row in comparison.rows]),
        "",
    ]

    if comparison.groups:
        lines += [*markdown(["group", *COLUMNS], [_cells(row) for row in comparison.groups]), ""]
    lines.append(f"{num_better + num_worse} answers flipped: {num_better} right in B only, {num_worse} in A only.")
    for name, (x, y) in comparison.whole.items():
        lines.append(f"{name}: {x:.4f} and {y:.4f} (of the whole; no interval)")
    return [*lines, ""]


def _cells(row: Row) -> list[str]:
    return [
        row.what,
        str(row.n),
        f"{row.a:.3f} [{row.a_low:.3f}, {row.a_high:.3f}]",
        f"{row.b:.3f} [{row.b_low:.3f}, {row.b_high:.3f}]",
        f"{row.difference:+.3f} [{row.low:+.3f}, {row.high:+.3f}]",
        f"{row.p:.4f}",
    ]


def _page(comparison: Comparison, head: str, a: Path, b: Path, picture: Path) -> str:
    """One file that needs nothing from outside."""
    metrics, groups = (page.table(map(_cells, rows), ("", *COLUMNS)) for rows in (comparison.rows, comparison.groups))
    flips = [(f.qid, f.better, f.a, f.b, " / ".join(f.answers)) for f in comparison.flips[:MAX_SHOWN_FLIPS]]
    return page.page(
        "pave compare",
        f"<h1>Two runs on the same questions</h1><p>A: {html.escape(str(a))}<br>B: {html.escape(str(b))}</p>"
        f"<p>{head}</p>{metrics}<h2>By group</h2>{groups}{page.picture(picture, 'Difference by group.')}"
        f"<h2>Flipped answers</h2><p>{len(comparison.flips)} in all, at most {MAX_SHOWN_FLIPS} shown; "
        f"flips.jsonl has them all.</p>{page.table(flips, ('question', 'right', 'A', 'B', 'answers'))}",
    )


def _plot(comparison: Comparison, file: Path) -> None:
    """Draw B - A with its interval, for every metric and group."""
    plotting.require_matplotlib(file)
    from matplotlib import pyplot

    rows = [*comparison.rows, *comparison.groups][::-1]
    figure, axes = pyplot.subplots(figsize=(7, 0.6 + 0.3 * max(len(rows), 1)), layout="constrained")
    for i, row in enumerate(rows):
        axes.plot([row.low, row.high], [i, i], color="#2a7f62", lw=2)
        axes.plot(row.difference, i, "o", color="#2a7f62")
    axes.axvline(0, color="#888", lw=1)
    axes.set_yticks(range(len(rows)), [row.what for row in rows])
    axes.set_xlabel("B - A, 95 % interval")
    axes.spines[["top", "right"]].set_visible(False)
    plotting.save_figure(figure, file, 130)


def _as_json(comparison: Comparison) -> dict[str, object]:
    return {
        "rows": [asdict(row) for row in comparison.rows],
        "groups": [asdict(row) for row in comparison.groups],
        "flips": len(comparison.flips),
        "whole": comparison.whole,
    }
