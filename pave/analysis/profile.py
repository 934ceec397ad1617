"""`pave profile`: parameters, files, work and memory of each part of a model; needs shapes, no weights."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

from pave.analysis import bench_patch, op_counter
from pave.analysis.op_counter import Shape
from pave.checkpoints import build
from pave.config import Config
from pave.models import lora
from pave.models.patched_model import Pave
from pave.models.trainable import PARTS, part_of
from pave.training.train import RECIPE
from pave.types import UserError
from pave.utils.atomic import atomic_file
from pave.utils.registry import nearest

TEXT = 46
"""Text tokens of a prompt: system prompt, turn marks and a question of some 25 tokens."""
FACTORS = (1 / 4, 1 / 2, 1, 2, 4, 8, 16)
"""On the steps of a side-channel, for the curves."""
PUBLISHED = {
    name: Shape(*bench_patch.SIDES[row][:2])
    for name, row in {"audio": "audio", "dense": "dense", "exo": "exo", "scene3d": "3d"}.items()
}
"""By plugin: two minutes of sound, dense frames of two and a half, four cameras, a scene."""


@dataclass(frozen=True)
class Row:
    """One part; work is that of one prompt, a MB is 10^6 bytes."""

    parameters: int = 0
    trainable: int = 0
    file_mb: float = 0.0
    gflop: float = 0.0
    peak_mb: float = 0.0
    """What activations take at most while this part answers."""
    kept_mb: float = 0.0
    """Activations that a training step keeps for the backward pass, a sample."""


class Point(NamedTuple):
    """What so many tokens of a side-channel cost."""

    tokens: int
    patch_tflop: float
    llm_tflop: float
    """What the LLM would have to do in addition if it read these tokens itself."""


@dataclass(frozen=True)
class Profile:
    """The table, and what was counted."""

    base: str
    """Its plugin."""
    rows: dict[str, Row]
    """By part, in the order of the data; parts that a base does not have are left out."""
    token_gflop: float
    """Work of each new token of the answer."""
    cache_mb: float
    """What the LLM keeps of a prompt."""
    paper_llm_tflop: float
    """The LLM's work without newlines and LoRA, which is what the paper's figure gives for its base."""
    frames: int
    visual_tokens: int
    text_tokens: int
    sides: dict[str, Shape]
    dtype: str
    gradient_checkpointing: bool
    curves: dict[str, list[Point]]
    """By patch; empty if not asked for."""


def parse_shape(text: str) -> Shape:
    """STEPSxTOKENS. Raises UserError."""
    steps, _, per_step = text.partition("x")
    if not (steps.isdecimal() and per_step.isdecimal() and int(steps) and int(per_step)):
        raise UserError(f"--side '{text}': expected SIDE=STEPSxTOKENS, for example audio=120x1")
    return Shape(int(steps), int(per_step))


def profile(config: Config, shapes: Mapping[str, Shape], text: int = TEXT, curves: bool = False) -> Profile:
    """What a video and a prompt of `text` tokens cost; side-channels not in `shapes` are as large as published.

    Raises UserError for a side-channel that is not there or has no published size, and fewer than no tokens.
    """
    if text < 0:
        raise UserError(f"--text {text}: expected a number of tokens")
    sides = _sides(config, shapes)
    model = build.create(config, weights=False).eval()
    _as_stored(model, config)
    rows = _parameters(model)
    looking, projecting, (query, embeds) = op_counter.look(model, config.base.frames)
    rows["vision tower"] = replace(
        rows["vision tower"], gflop=(looking.flops - projecting) / 1e9, peak_mb=looking.peak / 1e6
    )
    rows["projector"] = replace(rows["projector"], gflop=projecting / 1e9)
    for name, shape in sides.items():
        with torch.no_grad():
            answering = op_counter.update(model, name, query, shape, config.sides[name].side_dim)
        training = op_counter.update(model, name, query, shape, config.sides[name].side_dim)
        rows[f"patch {name}"] = _with(rows[f"patch {name}"], answering, training)
    length = model.base.layout(embeds).shape[1] + text
    checkpointing = bool(config.train.get("gradient_checkpointing", RECIPE["gradient_checkpointing"]))
    rows["LLM"] = _with(
        rows["LLM"], op_counter.read(model, length, DynamicCache()), op_counter.learn(model, length, checkpointing)
    )
    unmerged, cache = rows["LLM"].gflop, DynamicCache()
    lora.set_weights(model.base.hf, dict.fromkeys(model.loras, 0.0))
    rows["LLM"] = replace(rows["LLM"], gflop=op_counter.read(model, length, cache).flops / 1e9)
    if "LoRA" in rows:
        rows["LoRA"] = replace(rows["LoRA"], gflop=unmerged - rows["LLM"].gflop)
    return Profile(
        base=config.base.name,
        rows={part: row for part, row in rows.items() if row != Row()},
        cache_mb=sum(x.nbytes for layer in cache.layers for x in (layer.keys, layer.values)) / 1e6,
        token_gflop=op_counter.read(model, 1, cache).flops / 1e9,
        paper_llm_tflop=op_counter.read(model, embeds.shape[1] * embeds.shape[2] + text, DynamicCache()).flops / 1e12,
        frames=config.base.frames,
        visual_tokens=length - text,
        text_tokens=text,
        sides=sides,
        dtype=config.base.dtype,
        gradient_checkpointing=checkpointing,
        curves={name: _curve(model, name, query, sides[name], config, length) for name in sides} if curves else {},
    )


def _sides(config: Config, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    for name in shapes.keys() - config.sides.keys():
        known = nearest(name, config.sides) if config.sides else "it has none"
        raise UserError(f"--side {name}: no side-channel '{name}' in this config; {known}")
    plugins = {name: side.side or name for name, side in config.sides.items()}
    for name in plugins.keys() - shapes.keys():
        if plugins[name] not in PUBLISHED:
            raise UserError(
                f"no usual size of side-channel '{plugins[name]}' is known; give --side {name}=STEPSxTOKENS"
            )
    return {name: shapes[name] if name in shapes else PUBLISHED[plugin] for name, plugin in plugins.items()}


def _as_stored(model: Pave, config: Config) -> None:
    """The base in its own type; patches and LoRA stay in float32, as everywhere."""
    for name, parameter in model.named_parameters():
        if part_of(name) != "LoRA" and not name.startswith("patches."):
            parameter.data = parameter.data.to(getattr(torch, config.base.dtype))


def _parameters(model: Pave) -> dict[str, Row]:
    """What there is of each part."""
    rows = dict.fromkeys([*PARTS.values(), *(f"patch {name}" for name in model.patches)], Row())
    for name, x in model.named_parameters():
        row, count = rows.get(part_of(name), Row()), x.numel()
        trainable, file_mb = row.trainable + count * x.requires_grad, row.file_mb + x.nbytes / 1e6
        rows[part_of(name)] = replace(row, parameters=row.parameters + count, trainable=trainable, file_mb=file_mb)
    return rows


def _with(row: Row, answering: op_counter.Work, training: op_counter.Work) -> Row:
    return replace(row, gflop=answering.flops / 1e9, peak_mb=answering.peak / 1e6, kept_mb=training.kept / 1e6)


@torch.no_grad()
def _curve(model: Pave, name: str, query: Tensor, shape: Shape, config: Config, length: int) -> list[Point]:
    """Work against the number of side tokens."""
    alone = op_counter.read(model, length, DynamicCache()).flops
    points = []
    for steps in sorted({max(1, round(shape.steps * factor)) for factor in FACTORS}):
        size = Shape(steps, shape.per_step)
        tokens = steps * shape.per_step
        more = op_counter.read(model, length + tokens, DynamicCache()).flops - alone
        points.append(
            Point(
                tokens,
                op_counter.update(model, name, query, size, config.sides[name].side_dim).flops / 1e12,
                more / 1e12,
            )
        )
    return points


def table(p: Profile) -> str:
    """The rows, their sum and how they were counted."""
    rows = list(p.rows.values())
    total = [sum(getattr(row, name) for row in rows) for name in ("parameters", "trainable", "file_mb", "gflop")]
    total += [max(row.peak_mb for row in rows), sum(row.kept_mb for row in rows)]
    lines = [["part", "parameters", "trainable", "file MB", "GFLOP", "peak MB", "kept MB"]]
    for part, values in [*((part, dataclasses.astuple(row)) for part, row in p.rows.items()), ("all", total)]:
        lines.append([part, *map(_short, values)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    told = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines]
    return "\n".join([*told, "", *notes(p)])


def _short(x: float) -> str:
    return f"{x:,}" if isinstance(x, int) else f"{x:,.1f}" if x >= 10 else f"{x:.3g}"


def notes(p: Profile) -> list[str]:
    """How the numbers came about."""
    sides = "".join(f", {name} {steps} x {per_step}" for name, (steps, per_step) in p.sides.items())
    patches = "".join(f", patch {name} {_short(p.rows[f'patch {name}'].gflop / 1e3)}" for name in p.sides)
    checkpointing = "on" if p.gradient_checkpointing else "off"
    told = f"The LLM without newlines and LoRA: {_short(p.paper_llm_tflop)} TFLOP{patches}."
    if p.base == "llava_onevision":
        told += " For the 7B the paper's\n"
        told += "figure has 98.5 and 0.1, likely the same count; tower and projector are not in it."
    return [
        f"One video of {p.frames} frames: {p.visual_tokens:,} visual tokens, {p.text_tokens} of text{sides}.",
        "GFLOP: a multiply-add is two. Counted: matrix products, convolutions, attention of every token to every",
        "token (causal kernels do half of the LLM's). Not counted: norms, softmax, sums, encoders of side-channels.",
        f"LoRA is not merged; merged it is no work. Each token of the answer: {_short(p.token_gflop)} GFLOP.",
        *told.splitlines(),
        f"file: base in {p.dtype}, patches and LoRA in float32, which 16 bits, as released, halve. MB: 10^6 bytes.",
        f"peak: activations of an answer, {_short(p.cache_mb)} MB of it the LLM's cache. kept: for the backward pass,",
        f"a sample, gradient checkpointing {checkpointing}, no autocast.",
    ]


def save(p: Profile, file: Path) -> None:
    """Everything as .json, or the rows as .csv, whole or not at all. Raises UserError for another ending."""
    text = io.StringIO()
    if file.suffix == ".json":
        sides = {name: shape._asdict() for name, shape in p.sides.items()}
        curves = {name: [point._asdict() for point in points] for name, points in p.curves.items()}
        json.dump({**dataclasses.asdict(p), "sides": sides, "curves": curves, "notes": notes(p)}, text, indent=1)
    elif file.suffix == ".csv":
        names = ["part", *(field.name for field in dataclasses.fields(Row))]
        csv.writer(text).writerows([names, *([part, *dataclasses.astuple(row)] for part, row in p.rows.items())])
    else:
        raise UserError(f"{file}: a profile is written as .json or .csv, not '{file.suffix}'")
    with atomic_file(file) as temporary:
        temporary.write_text(text.getvalue())
