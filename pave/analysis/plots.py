"""Draws the results of `pave explain` and `pave profile`; needs matplotlib, the extra `plot`."""

from __future__ import annotations

import html
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pave.analysis.explain import Explanation, View
from pave.analysis.profile import Profile
from pave.utils import html as page
from pave.utils.atomic import write_text
from pave.utils.plotting import require_matplotlib, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

DPI = 110
GREEN, ORANGE, GREY = "#2a7f62", "#d98c5f", "#d0d0d0"
MAX_FRAMES, MAX_STEPS = 3, 5
"""Of the maps over space."""
OVERVIEW = (
    "Top: the frames. Middle: how each frame (column) shares out its attention over the steps of the side-channel "
    "(rows), mean over layers, heads and the frame's tokens; grey steps are outside its window. Where a window has one "
    "step, all attention is there, whatever the patch learnt. Below: length of the patch's update over the length of "
    "the visual tokens that it is added to. Bottom: log-probability of the answer."
)
HEADS = "attention of every layer and head, mean over a frame's tokens"
SPACE = (
    "the frames that change most. Left: change of each visual token; the frame marks the one whose attention the other "
    "maps show, over the tokens of the steps it attends to most"
)
LOGPROBS = (
    "off: without that side-channel, LoRA stays. shifted: its tokens come half a clip later, and the last ones first. "
    "base: neither patches nor LoRA. The others stay as they are."
)


class Picture(NamedTuple):
    """A written picture and its caption."""

    file: Path
    caption: str


def write_explanation(e: Explanation, out: Path) -> Path:
    """Write pictures, explain.json and a page with the pictures inside. Returns the page."""
    require_matplotlib(out)
    out.mkdir(parents=True, exist_ok=True)

    figures = {"overview.png": (draw_overview(e), OVERVIEW)}
    for name, view in e.views.items():
        figures[f"attention_{name}.png"] = (_draw_heads(name, view), f"{name}: {HEADS}")
        # Maps need square grids: of the side-channel's tokens, more than one, and of the frame's.
        if _grid_size(view.attention.tokens.shape[-1]) > 1 and _grid_size(view.change.shape[1]):
            figures[f"space_{name}.png"] = (_draw_space(view, e), f"{name}: {SPACE}")

    pictures = []
    for file, (figure, caption) in figures.items():
        save_figure(figure, out / file, DPI)
        pictures.append(Picture(out / file, caption))
    write_text(out / "explain.json", json.dumps(_as_json(e), indent=1))
    write_text(out / "index.html", _page(e, pictures))
    return out / "index.html"


def draw_overview(e: Explanation) -> Figure:
    """Draw the frames, each patch's attention and change over time, and the log-probabilities below."""
    from matplotlib import pyplot

    frames, (height, width) = len(e.clip.frames), e.clip.frames.shape[1:3]
    heights = [7.4 / frames * height / width]
    for _ in e.views:
        heights += [2.2, 0.8]
    heights.append(0.26 * len(e.logprobs) + 0.1)
    size = (9, sum(heights) + 0.6 * len(heights))
    figure, axes = pyplot.subplots(len(heights), 1, figsize=size, layout="constrained", height_ratios=heights)

    strip = np.concatenate(list(e.clip.frames), 1)
    axes[0].imshow(strip, aspect="auto", extent=(-0.5, frames - 0.5, 0, 1))
    axes[0].vlines(np.arange(frames - 1) + 0.5, 0, 1, color="white", linewidth=1)
    axes[0].set_xlim(-0.5, frames - 0.5)
    axes[0].set_axis_off()
    axes[0].set_title(f"{e.question}  →  {e.answer}", fontsize=10, wrap=True)

    for i, (name, view) in enumerate(e.views.items()):
        attention_axes, change_axes = axes[1 + 2 * i], axes[2 + 2 * i]
        image = _draw_over_time(attention_axes, view, view.attention.frames.mean((0, 1)))
        attention_axes.set_ylabel(f"{name}, {_time_unit(view)}")
        attention_axes.set_xticks([])
        figure.colorbar(image, ax=attention_axes, label="attention", pad=0.01)

        change_axes.bar(range(frames), view.change.mean(1).numpy(), color=GREEN)
        change_axes.set_xlim(-0.5, frames - 0.5)
        change_axes.set_ylabel("change")
        shown = range(0, frames, math.ceil(frames / 16))
        change_axes.set_xticks(shown, [f"{e.clip.seconds[t]:.1f}" for t in shown], fontsize=8)
        change_axes.spines[["top", "right"]].set_visible(False)

    axes[-2].set_xlabel("frame, s")
    _draw_logprobs(axes[-1], e)
    return figure


def _time_unit(view: View) -> str:
    return "step" if view.seconds is None else "s"


def _draw_over_time(axes: Axes, view: View, share: Tensor) -> AxesImage:
    """Draw share float[T,K] with frames to the right, and steps upwards."""
    masked = np.ma.masked_array(share.numpy(), ~view.attention.in_window.numpy()).T
    axes.set_facecolor("#e8e8e8")
    image = axes.imshow(masked, aspect="auto", origin="lower", vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
    steps = share.shape[1]
    if view.seconds is not None:
        shown = range(0, steps, math.ceil(steps / 8))
        axes.set_yticks(shown, [f"{view.seconds[k]:.1f}" for k in shown], fontsize=8)
    return image


def _draw_logprobs(axes: Axes, e: Explanation) -> None:
    """Bars of the answer's log-probability."""
    labels, values = list(e.logprobs), list(e.logprobs.values())
    axes.barh(labels, values, color=[GREEN, *[ORANGE] * (len(labels) - 2), GREY])
    axes.invert_yaxis()

    low = min(*values, -0.1)
    axes.set_xlim(1.05 * low, -0.12 * low)
    for i, value in enumerate(values):
        axes.text(0, i, f" {value:.3g}", va="center", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.set_xlabel(f"log-probability of “{e.answer[:40]}”")
    axes.spines[["top", "right"]].set_visible(False)


def _draw_heads(name: str, view: View) -> Figure:
    """One map over time for each layer and head."""
    from matplotlib import pyplot

    layers, heads = view.attention.frames.shape[:2]
    size = (2.2 * heads + 0.8, 1.9 * layers)
    figure, axes = pyplot.subplots(layers, heads, figsize=size, layout="constrained", squeeze=False, sharey=True)

    for layer in range(layers):
        for head in range(heads):
            image = _draw_over_time(axes[layer][head], view, view.attention.frames[layer, head])
            axes[layer][head].set_title(f"layer {layer + 1}, head {head + 1}", fontsize=8)
            axes[layer][head].tick_params(labelsize=7)
        axes[layer][0].set_ylabel(f"{name}, {_time_unit(view)}", fontsize=8)
    for head in range(heads):
        axes[-1][head].set_xlabel("frame", fontsize=8)
    figure.colorbar(image, ax=axes, label="attention", pad=0.01)
    return figure


def _grid_size(tokens: int) -> int:
    """Edge of a square grid of tokens; 0 if they are none."""
    edge = math.isqrt(tokens)
    return edge if edge**2 == tokens else 0


def _draw_space(view: View, e: Explanation) -> Figure:
    """One row for each of the most changed frames: its change, then attention over the tokens of some steps."""
    from matplotlib import pyplot

    frames = sorted(view.change.mean(1).topk(min(MAX_FRAMES, len(view.change))).indices.tolist())
    frame_grid, side_grid = _grid_size(view.change.shape[1]), _grid_size(view.attention.tokens.shape[-1])
    columns = 1 + min(MAX_STEPS, int(view.attention.in_window[frames].sum(1).max()))
    size = (1.6 * columns, 1.8 * len(frames))
    figure, axes = pyplot.subplots(len(frames), columns, figsize=size, layout="constrained", squeeze=False)

    for row, frame in zip(axes, frames):
        for cell in row:
            cell.set_axis_off()
        _draw_change(row[0], view, e, frame, frame_grid)

        maps = view.attention.tokens[:, :, frame].mean((0, 1))
        num_steps = min(columns - 1, int(view.attention.in_window[frame].sum()))
        steps = sorted(maps.sum(1).topk(num_steps).indices.tolist())
        for cell, step in zip(row[1:], steps):
            grid = maps[step].view(side_grid, side_grid).numpy()
            cell.imshow(grid, vmin=0, vmax=float(maps.max()), cmap="viridis")
            time = "" if view.seconds is None else f", {view.seconds[step]:.1f} s"
            cell.set_title(f"step {step + 1}{time}: {float(maps[step].sum()):.0%}", fontsize=8)
    return figure


def _draw_change(axes: Axes, view: View, e: Explanation, frame: int, grid: int) -> None:
    """A frame with the change of each token over it, and a box around the shown token."""
    from matplotlib.patches import Rectangle

    extent = (0, 1, 0, 1)
    change = view.change[frame].view(grid, grid).numpy()
    axes.imshow(e.clip.frames[frame], extent=extent, aspect="auto")
    axes.imshow(change, extent=extent, aspect="auto", alpha=0.5, cmap="inferno")

    row, column = divmod(int(view.shown_tokens[frame]), grid)
    corner = (column / grid, 1 - (row + 1) / grid)
    axes.add_patch(Rectangle(corner, 1 / grid, 1 / grid, fill=False, edgecolor="white", linewidth=1.5))
    axes.set_title(f"frame at {e.clip.seconds[frame]:.1f} s", fontsize=8)


def _as_json(e: Explanation) -> dict[str, object]:
    """All numbers but those of single tokens, as plain dicts and lists."""
    sides = {}
    for name, view in e.views.items():
        sides[name] = {
            "step_seconds": None if view.seconds is None else _rounded(view.seconds),
            "seen": [torch.nonzero(row)[:, 0].tolist() for row in view.attention.in_window],
            "attention": _rounded(view.attention.frames),
            "chosen_token": view.shown_tokens.tolist(),
            "change": _rounded(view.change.mean(1)),
        }
    return {
        "question": e.question,
        "answer": e.answer,
        "frame_seconds": _rounded(torch.from_numpy(e.clip.seconds)),
        "log_probability": dict(e.logprobs),
        "sides": sides,
    }


def _rounded(x: Tensor) -> list[object]:
    return x.double().numpy().round(5).tolist()


def _page(e: Explanation, pictures: list[Picture]) -> str:
    """One HTML file with the pictures in it."""
    rows = [(label, f"{value:.3f}", f"{math.exp(value):.3f}") for label, value in e.logprobs.items()]
    table = page.table(rows, ("what was done", "log-probability", "probability of this answer"), numbers=True)
    figures = "".join(page.picture(picture.file, picture.caption) for picture in pictures)
    head = f"<h1>{html.escape(e.question)}</h1><p><b>{html.escape(e.answer)}</b></p>"
    return page.page("pave explain", f"{head}{table}<p>{html.escape(LOGPROBS)}</p>{figures}")


def plot_costs(p: Profile, file: Path) -> None:
    """Draw pies of parameters and work, and work against the number of side tokens, into one .png."""
    require_matplotlib(file)
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2 + bool(p.curves), figsize=(11 if p.curves else 7, 3.4), layout="constrained")
    _draw_pie(axes[0], "parameters", {part: row.parameters for part, row in p.rows.items()})
    _draw_pie(axes[1], "work of a prompt", {part: row.gflop for part, row in p.rows.items()})
    if p.curves:
        _draw_curves(axes[2], p)
    save_figure(figure, file, DPI)


def _draw_pie(axes: Axes, title: str, values: dict[str, float]) -> None:
    total = sum(values.values())
    shown = {part: value for part, value in values.items() if value > 5e-5 * total}
    colors = {part: f"C{i}" for i, part in enumerate(values)}
    axes.pie(list(shown.values()), colors=[colors[part] for part in shown], startangle=90, counterclock=False)
    labels = [f"{part} {value / total:.2%}" for part, value in shown.items()]
    axes.legend(labels, loc="upper center", bbox_to_anchor=(0.5, 0.02), fontsize=8, frameon=False)
    axes.set_title(title, fontsize=10)


def _draw_curves(axes: Axes, p: Profile) -> None:
    """Work of patches and LLM; dotted lines stand at the sizes of the profile."""
    for i, (name, points) in enumerate(p.curves.items()):
        tokens, patch_tflop = [point.tokens for point in points], [point.patch_tflop for point in points]
        axes.plot(tokens, patch_tflop, "o-", label=f"patch {name}", color=f"C{i}")
        axes.axvline(p.sides[name].steps * p.sides[name].per_step, color=f"C{i}", linewidth=0.8, linestyle=":")

    merged = sorted(point for points in p.curves.values() for point in points)
    label = "the LLM, if it read them"
    llm_tflop = [point.llm_tflop for point in merged]
    axes.plot([point.tokens for point in merged], llm_tflop, "s--", label=label, color="#808080", markersize=4)
    axes.set(xscale="log", yscale="log", xlabel="tokens of the side-channel", ylabel="TFLOP more")
    axes.legend(loc="upper left", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
