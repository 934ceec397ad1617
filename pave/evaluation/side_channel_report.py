"""`pave compare`: what the side-channel adds, as a table and a plot."""

from __future__ import annotations

from pathlib import Path

from pave.evaluation import run_folder
from pave.tasks import sideworld
from pave.utils import plotting, tables

COLUMNS = ("chance", "base", "patched", "patched, sides shuffled")


def main(base: Path, patched: Path, shuffled: Path, out: Path) -> str:
    """Write out/report.md and out/report.png from three folders of `pave eval`. Returns the report."""
    runs = [run_folder.read_metrics(folder) for folder in (base, patched, shuffled)]
    columns = [runs[1]["chance"], *(run["metrics"] for run in runs)]
    all_needs = {kind.needs for kind in sideworld.KINDS}
    kinds = [name for name in columns[0] if name not in all_needs]
    control = f"{columns[2]['visual']:.3f}"
    summary = [
        [f"{needs} questions", *(f"{column[needs]:.3f}" for column in columns), control]
        for needs in columns[0]
        if needs in all_needs - {"visual"}
    ]
    lines = [
        "# What the side-channel adds",
        "",
        "Accuracy on questions that only a side-channel can decide; the visual control needs the video alone.",
        "",
        *tables.markdown(["", *COLUMNS, "visual control"], summary),
        "",
        "By kind of question:",
        "",
        *tables.markdown(["question", *COLUMNS], [[k, *(f"{column[k]:.3f}" for column in columns)] for k in kinds]),
        "",
        f"{runs[1]['metrics']['n']} questions of sideworld {runs[1]['split']}. A small world: it shows that the method"
        " and this code work, not how well they do on real video.",
        "",
        "![accuracy by kind of question](report.png)",
        "",
    ]
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.md").write_text("\n".join(lines))
    _plot(kinds, columns, out / "report.png")
    return "\n".join(lines)


def _plot(kinds: list[str], columns: list[dict[str, float]], file: Path) -> None:
    """Grouped bars: one group a kind of question, one bar a column."""
    plotting.require_matplotlib(file)
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 3.2), layout="constrained")
    width = 0.8 / len(columns)
    for i, (name, column, color) in enumerate(zip(COLUMNS, columns, ("#d0d0d0", "#8fa3b8", "#2a7f62", "#d98c5f"))):
        axes.bar(
            [k + (i - 1.5) * width for k in range(len(kinds))],
            [column[k] for k in kinds],
            width,
            label=name,
            color=color,
        )
    axes.set_xticks(range(len(kinds)), [k.replace("_", " ") for k in kinds])
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("accuracy")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.18), ncols=4, frameon=False)
    plotting.save_figure(figure, file, dpi=140)
