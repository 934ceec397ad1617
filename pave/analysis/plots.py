"""Pictures of what `pave explain` and `pave profile` found; needs matplotlib, the extra `plot`."""

from __future__ import annotations

import html
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from pave.analysis.explain import Explanation, View, as_json
from pave.analysis.profile import Profile
from pave.types import UserError
from pave.utils import html as page
from pave.utils.atomic import atomic_file

GREEN, ORANGE, GREY, BLUE = "#2a7f62", "#d98c5f", "#d0d0d0", "#8fa3b8"
SHOWN_FRAMES, SHOWN_STEPS = 3, 5
"""Of the maps over space."""

Written = list[tuple[str, str]]
"""File and what it shows."""


def explanation(e: Explanation, out: Path) -> Path:
    """Write pictures, explain.json and a page that shows all, without anything from outside; returns the page."""
    check(out)
    out.mkdir(parents=True, exist_ok=True)
    written: Written = []
    _save(_overview(e), out / "overview.png")
    written.append(("overview.png", OVERVIEW))
    for name, view in e.views.items():
        _save(_heads(name, view), out / f"attention_{name}.png")
        written.append(
            (f"attention_{name}.png", f"{name}: attention of every layer and head, mean over a frame's tokens")
        )
        if _edge(view.attention.tokens.shape[-1]) > 1 and _edge(view.change.shape[1]):
            _save(_space(name, view, e), out / f"space_{name}.png")
            written.append((f"space_{name}.png", f"{name}: {SPACE}"))
    for file, text in (("explain.json", json.dumps(as_json(e), indent=1)), ("index.html", _page(e, out, written))):
        with atomic_file(out / file) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return out / "index.html"


OVERVIEW = (
    "Top: the frames. Middle: how each frame (column) shares out its attention over the steps of the side-channel "
    "(rows), mean over layers, heads and the frame's tokens; grey steps are outside its window. Where a window has one "
    "step, all attention is there, whatever the patch learnt. Below: length of the patch's update over the length of "
    "the visual tokens that it is added to. Bottom: log-probability of the answer."
)
SPACE = (
    "the frames that change most. Left: change of each visual token; the frame marks the one whose attention the other "
    "maps show, over the tokens of the steps it attends to most"
)


def _overview(e: Explanation) -> Any:
    pyplot = _pyplot()
    frames, (height, width) = len(e.clip.frames), e.clip.frames.shape[1:3]
    strip = 7.4 / frames * height / width
    rows = [strip, *(x for _ in e.views for x in (2.2, 0.8)), 0.26 * len(e.worth) + 0.1]
    figure, axes = pyplot.subplots(
        len(rows), 1, figsize=(9, sum(rows) + 0.6 * len(rows)), layout="constrained", height_ratios=rows
    )
    axes[0].imshow(np.concatenate(list(e.clip.frames), 1), aspect="auto", extent=(-0.5, frames - 0.5, 0, 1))
    axes[0].vlines(np.arange(frames - 1) + 0.5, 0, 1, color="white", linewidth=1)
    axes[0].set_xlim(-0.5, frames - 0.5)
    axes[0].set_axis_off()
    axes[0].set_title(f"{e.question}  →  {e.answer}", fontsize=10, wrap=True)
    for i, (name, view) in enumerate(e.views.items()):
        steps, change = axes[1 + 2 * i], axes[2 + 2 * i]
        image = _over_time(steps, view, view.attention.frames.mean((0, 1)))
        steps.set_ylabel(f"{name}, {'step' if view.seconds is None else 's'}")
        steps.set_xticks([])
        figure.colorbar(image, ax=steps, label="attention", pad=0.01)
        change.bar(range(frames), view.change.mean(1).numpy(), color=GREEN)
        change.set_xlim(-0.5, frames - 0.5)
        change.set_ylabel("change")
        shown = range(0, frames, math.ceil(frames / 16))
        change.set_xticks(shown, [f"{e.clip.seconds[t]:.1f}" for t in shown], fontsize=8)
        change.spines[["top", "right"]].set_visible(False)
    axes[-2].set_xlabel("frame, s")
    _bars(axes[-1], e)
    return figure


def _over_time(axes: Any, view: View, share: Tensor) -> Any:
    """share float[T,K] with time to the right, and the steps upwards."""
    hidden = np.ma.masked_array(share.numpy(), ~view.attention.seen.numpy()).T
    axes.set_facecolor("#e8e8e8")
    image = axes.imshow(hidden, aspect="auto", origin="lower", vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
    steps = share.shape[1]
    if view.seconds is not None:
        shown = range(0, steps, math.ceil(steps / 8))
        axes.set_yticks(shown, [f"{view.seconds[k]:.1f}" for k in shown], fontsize=8)
    return image


def _bars(axes: Any, e: Explanation) -> None:
    """Log-probability of the answer by what was done."""
    names, values = list(e.worth), list(e.worth.values())
    axes.barh(names, values, color=[GREEN, *[ORANGE] * (len(names) - 2), GREY])
    axes.invert_yaxis()
    low = min(*values, -0.1)
    axes.set_xlim(1.05 * low, -0.12 * low)
    for i, value in enumerate(values):
        axes.text(0, i, f" {value:.3g}", va="center", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.set_xlabel(f"log-probability of “{e.answer[:40]}”")
    axes.spines[["top", "right"]].set_visible(False)


def _heads(name: str, view: View) -> Any:
    pyplot = _pyplot()
    layers, heads = view.attention.frames.shape[:2]
    figure, axes = pyplot.subplots(
        layers, heads, figsize=(2.2 * heads + 0.8, 1.9 * layers), layout="constrained", squeeze=False, sharey=True
    )
    for layer in range(layers):
        for head in range(heads):
            image = _over_time(axes[layer][head], view, view.attention.frames[layer, head])
            axes[layer][head].set_title(f"layer {layer + 1}, head {head + 1}", fontsize=8)
            axes[layer][head].tick_params(labelsize=7)
        axes[layer][0].set_ylabel(f"{name}, {'step' if view.seconds is None else 's'}", fontsize=8)
    for head in range(heads):
        axes[-1][head].set_xlabel("frame", fontsize=8)
    figure.colorbar(image, ax=axes, label="attention", pad=0.01)
    return figure


def _edge(tokens: int) -> int:
    """Side of a square grid of tokens; 0 where they are none."""
    edge = math.isqrt(tokens)
    return edge if edge**2 == tokens else 0


def _space(name: str, view: View, e: Explanation) -> Any:
    pyplot = _pyplot()
    frames = sorted(view.change.mean(1).topk(min(SHOWN_FRAMES, len(view.change))).indices.tolist())
    side, edge = _edge(view.change.shape[1]), _edge(view.attention.tokens.shape[-1])
    columns = 1 + min(SHOWN_STEPS, int(view.attention.seen[frames].sum(1).max()))
    figure, axes = pyplot.subplots(
        len(frames), columns, figsize=(1.6 * columns, 1.8 * len(frames)), layout="constrained", squeeze=False
    )
    for row, frame in zip(axes, frames):
        maps = view.attention.tokens[:, :, frame].mean((0, 1))
        steps = maps.sum(1).topk(min(columns - 1, int(view.attention.seen[frame].sum()))).indices.tolist()
        for cell in row:
            cell.set_axis_off()
        where = (0, 1, 0, 1)
        row[0].imshow(e.clip.frames[frame], extent=where, aspect="auto")
        row[0].imshow(
            view.change[frame].view(side, side).numpy(), extent=where, aspect="auto", alpha=0.5, cmap="inferno"
        )
        at = divmod(int(view.chosen[frame]), side)
        box = ((at[1] / side, 1 - (at[0] + 1) / side), 1 / side, 1 / side)
        row[0].add_patch(pyplot.Rectangle(*box, fill=False, edgecolor="white", linewidth=1.5))
        row[0].set_title(f"frame at {e.clip.seconds[frame]:.1f} s", fontsize=8)
        for cell, step in zip(row[1:], sorted(steps)):
            cell.imshow(maps[step].view(edge, edge).numpy(), vmin=0, vmax=float(maps.max()), cmap="viridis")
            at_time = "" if view.seconds is None else f", {view.seconds[step]:.1f} s"
            cell.set_title(f"step {step + 1}{at_time}: {float(maps[step].sum()):.0%}", fontsize=8)
    return figure


def _page(e: Explanation, out: Path, written: Written) -> str:
    """One HTML file with the pictures in it."""
    rows = [(name, f"{value:.3f}", f"{math.exp(value):.3f}") for name, value in e.worth.items()]
    worth = page.table(rows, ("what was done", "log-probability", "probability of this answer"), numbers=True)
    pictures = "".join(page.picture(out / file, text) for file, text in written)
    head = f"<h1>{html.escape(e.question)}</h1><p><b>{html.escape(e.answer)}</b></p>"
    return page.page("pave explain", f"{head}{worth}<p>{html.escape(WORTH)}</p>{pictures}")


WORTH = (
    "off: without that side-channel, LoRA stays. shifted: its tokens come half a clip later, and the last ones first. "
    "base: neither patches nor LoRA. The others stay as they are."
)


def costs(p: Profile, file: Path) -> None:
    """Pies of parameters and work, and work against the number of side tokens, as one .png."""
    check(file)
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(1, 2 + bool(p.curves), figsize=(11 if p.curves else 7, 3.4), layout="constrained")
    _pie(axes[0], "parameters", {part: row.parameters for part, row in p.rows.items()})
    _pie(axes[1], "work of a prompt", {part: row.gflop for part, row in p.rows.items()})
    if p.curves:
        _curves(axes[2], p)
    _save(figure, file)


def _pie(axes: Any, title: str, values: dict[str, float]) -> None:
    total = sum(values.values())
    shown = {part: value for part, value in values.items() if value > 5e-5 * total}
    colors = {part: f"C{i}" for i, part in enumerate(values)}
    axes.pie(list(shown.values()), colors=[colors[part] for part in shown], startangle=90, counterclock=False)
    labels = [f"{part} {value / total:.2%}" for part, value in shown.items()]
    axes.legend(labels, loc="upper center", bbox_to_anchor=(0.5, 0.02), fontsize=8, frameon=False)
    axes.set_title(title, fontsize=10)


def _curves(axes: Any, p: Profile) -> None:
    """Dotted lines stand where the profile is."""
    for i, (name, points) in enumerate(p.curves.items()):
        tokens, patch, _ = zip(*points)
        axes.plot(tokens, patch, "o-", label=f"patch {name}", color=f"C{i}")
        axes.axvline(p.sides[name].steps * p.sides[name].per_step, color=f"C{i}", linewidth=0.8, linestyle=":")
    tokens, _, llm = zip(*sorted(point for points in p.curves.values() for point in points))
    axes.plot(tokens, llm, "s--", label="the LLM, if it read them", color="#808080", markersize=4)
    axes.set(xscale="log", yscale="log", xlabel="tokens of the side-channel", ylabel="TFLOP more")
    axes.legend(loc="upper left", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Any, file: Path) -> None:
    with atomic_file(file) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    _pyplot().close(figure)


def check(file: Path) -> None:
    """Before anything is drawn. Raises UserError."""
    try:
        import matplotlib
    except ImportError as error:
        raise UserError(f"{file}: pictures need matplotlib; pip install -e '.[plot]'") from error
    matplotlib.use("agg")


def _pyplot() -> Any:
    from matplotlib import pyplot

    return pyplot
