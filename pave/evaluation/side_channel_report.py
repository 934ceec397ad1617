"""`pave side-report`: what a side-channel adds on the small world, as a table and a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pave.evaluation import run_folder
from pave.tasks import sideworld
from pave.utils import plotting, tables
from pave.utils.atomic import write_text

COLORS = {"chance": "#d0d0d0", "base": "#8fa3b8", "patched": "#2a7f62", "patched, sides shuffled": "#d98c5f"}
"""Colour of each column in the plot."""


def main(base: Path, patched: Path, shuffled: Path, out: Path) -> str:
    """Write out/report.md and out/report.png from three folders of `pave eval`. Returns the report."""
    runs = [run_folder.read_metrics(folder) for folder in (base, patched, shuffled)]
    patched_run = runs[1]
    scores = [patched_run["chance"], *(run["metrics"] for run in runs)]
    columns: dict[str, dict[str, float]] = dict(zip(COLORS, scores))

    # Among the metrics are one for each kind of question, and one for all kinds that need the same side-channel.
    all_needs = {kind.needs for kind in sideworld.KINDS}
    kinds = [name for name in columns["chance"] if name not in all_needs]
    needs = [name for name in columns["chance"] if name in all_needs - {"visual"}]
    control = f"{columns['patched']['visual']:.3f}"
    by_need = [[f"{name} questions", *_accuracies(columns, name), control] for name in needs]
    by_kind = [[kind, *_accuracies(columns, kind)] for kind in kinds]

    lines = [
        "# What the side-channel adds",
        "",
        "Accuracy on questions that only a side-channel can decide; the visual control needs the video alone.",
        "",
        *tables.markdown(["", *columns, "visual control"], by_need),
        "",
        "By kind of question:",
        "",
        *tables.markdown(["question", *columns], by_kind),
        "",
        f"{patched_run['metrics']['n']} questions of sideworld {patched_run['split']}. A small world: it shows that "
        "the method and this code work, not how well they do on real video.",
        "",
        "![accuracy by kind of question](report.png)",
        "",
    ]
    text = "\n".join(lines)
    write_text(out / "report.md", text)
    _plot(kinds, columns, out / "report.png")
    return text


def _accuracies(columns: Mapping[str, Mapping[str, float]], name: str) -> list[str]:
    return [f"{column[name]:.3f}" for column in columns.values()]


def _plot(kinds: Sequence[str], columns: Mapping[str, Mapping[str, float]], file: Path) -> None:
    """Draw one group of bars for each kind of question, with one bar for each column."""
    plotting.require_matplotlib(file)
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 3.2), layout="constrained")
    width = 0.8 / len(columns)
    for i, (name, column) in enumerate(columns.items()):
        offset = (i - (len(columns) - 1) / 2) * width
        heights = [column[kind] for kind in kinds]
        axes.bar([k + offset for k in range(len(kinds))], heights, width, label=name, color=COLORS[name])

    axes.set_xticks(range(len(kinds)), [kind.replace("_", " ") for kind in kinds])
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("accuracy")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.18), ncols=4, frameon=False)
    plotting.save_figure(figure, file, dpi=140)
