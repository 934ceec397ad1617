"""`pave profile`: parameters, files, work and memory of each part of a model; needs shapes, no weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

from pave.analysis import bench_patch, op_counter
from pave.analysis.op_counter import OpCounts, Shape
from pave.checkpoints import build
from pave.config import Config
from pave.data.extraction import DTYPES
from pave.models import lora
from pave.models.patched_model import PatchedModel
from pave.models.trainable import PARTS, part_of
from pave.training.recipe import RECIPE
from pave.types import UserError
from pave.utils import tables
from pave.utils.registry import nearest

TEXT_TOKENS = 46
"""Text tokens of a prompt: system prompt, turn marks and a question of some 25 tokens."""
CURVE_FACTORS = (1 / 4, 1 / 2, 1, 2, 4, 8, 16)
"""Factors on the steps of a side-channel, for the curves."""
PUBLISHED_SHAPES = {
    name: Shape(bench_patch.SIDES[row].steps, bench_patch.SIDES[row].per_step)
    for name, row in {"audio": "audio", "dense": "dense", "exo": "exo", "scene3d": "3d"}.items()
}
"""By plugin: two minutes of sound, dense frames of two and a half, four cameras, a scene."""


@dataclass(frozen=True)
class Row:
    """One part of the model; work is that of one prompt, a MB is 10^6 bytes."""

    parameters: int = 0
    trainable: int = 0
    file_mb: float = 0.0
    gflop: float = 0.0
    peak_mb: float = 0.0
    """Most memory of activations while this part answers."""
    kept_mb: float = 0.0
    """Activations that a training step saves for the backward pass, a sample."""


class Point(NamedTuple):
    """Cost of so many tokens of a side-channel."""

    tokens: int
    patch_tflop: float
    llm_tflop: float
    """Additional work of the LLM if it read these tokens itself."""


@dataclass(frozen=True)
class Profile:
    """The table, and what was counted."""

    base: str
    """Plugin of the base."""
    rows: dict[str, Row]
    """By part, in the order of the data; parts that a base does not have are left out."""
    token_gflop: float
    """Work of each new token of the answer."""
    cache_mb: float
    """The LLM's cache for a prompt."""
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
    """Parse STEPSxTOKENS. Raises UserError."""
    steps, _, per_step = text.partition("x")
    if not (steps.isdecimal() and per_step.isdecimal() and int(steps) and int(per_step)):
        raise UserError(f"--side-shape '{text}': expected NAME=STEPSxTOKENS, for example audio=120x1")
    return Shape(int(steps), int(per_step))


def profile(config: Config, shapes: Mapping[str, Shape], text: int = TEXT_TOKENS, curves: bool = False) -> Profile:
    """Count the cost of a video and a prompt of `text` tokens; side-channels not in `shapes` are as large as published.

    Raises UserError for an unknown side-channel or one without a published size, and for a negative number of tokens.
    """
    if text < 0:
        raise UserError(f"--text {text}: expected a number of tokens")
    sides = _side_shapes(config, shapes)
    model = build.create(config, weights=False).eval()
    _set_base_dtype(model, config)
    rows = _count_parameters(model)

    vision = op_counter.count_vision(model, config.base.frames)
    query, embeds = vision.tokens
    tower_gflop, projector_gflop = (vision.counts.flops - vision.projector_flops) / 1e9, vision.projector_flops / 1e9
    rows["vision tower"] = replace(rows["vision tower"], gflop=tower_gflop, peak_mb=vision.counts.peak_bytes / 1e6)
    rows["projector"] = replace(rows["projector"], gflop=projector_gflop)

    for name, shape in sides.items():
        side_dim = config.sides[name].side_dim
        with torch.no_grad():
            answering = op_counter.count_patch(model, name, query, shape, side_dim)
        training = op_counter.count_patch(model, name, query, shape, side_dim)
        rows[f"patch {name}"] = _with_counts(rows[f"patch {name}"], answering, training)

    length = model.base.arrange_tokens(embeds).shape[1] + text
    checkpointing = bool(config.train.get("gradient_checkpointing", RECIPE["gradient_checkpointing"]))
    with_lora = op_counter.count_llm(model, length, DynamicCache())
    training = op_counter.count_training(model, length, checkpointing)

    # LoRA has no modules that could be counted alone: its work is what is gone when it is switched off.
    lora.set_weights(model.base.hf, dict.fromkeys(model.lora_patches, 0.0))
    cache = DynamicCache()
    without_lora = op_counter.count_llm(model, length, cache)
    rows["LLM"] = replace(_with_counts(rows["LLM"], with_lora, training), gflop=without_lora.flops / 1e9)
    if "LoRA" in rows:
        rows["LoRA"] = replace(rows["LoRA"], gflop=(with_lora.flops - without_lora.flops) / 1e9)

    cache_bytes = sum(x.nbytes for layer in cache.layers for x in (layer.keys, layer.values))
    num_grid_tokens = embeds.shape[1] * embeds.shape[2]
    return Profile(
        base=config.base.name,
        rows={part: row for part, row in rows.items() if row != Row()},
        cache_mb=cache_bytes / 1e6,
        token_gflop=op_counter.count_llm(model, 1, cache).flops / 1e9,
        paper_llm_tflop=op_counter.count_llm(model, num_grid_tokens + text, DynamicCache()).flops / 1e12,
        frames=config.base.frames,
        visual_tokens=length - text,
        text_tokens=text,
        sides=sides,
        dtype=config.base.dtype,
        gradient_checkpointing=checkpointing,
        curves={name: cost_curve(model, name, query, sides[name], config, length) for name in sides if curves},
    )


def _side_shapes(config: Config, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """The size of every side-channel: the given one, or the published one."""
    for name in shapes.keys() - config.sides.keys():
        hint = nearest(name, config.sides) if config.sides else "it has none"
        raise UserError(f"--side-shape {name}: no side-channel '{name}' in this config; {hint}")

    sides = {}
    for name, side in config.sides.items():
        plugin = side.side or name
        if name not in shapes and plugin not in PUBLISHED_SHAPES:
            hint = f"give --side-shape {name}=STEPSxTOKENS"
            raise UserError(f"no usual size of side-channel '{plugin}' is known; {hint}")
        sides[name] = shapes[name] if name in shapes else PUBLISHED_SHAPES[plugin]
    return sides


def _set_base_dtype(model: PatchedModel, config: Config) -> None:
    """Put the base into its own type; patches and LoRA stay in float32, as everywhere."""
    dtype = DTYPES[config.base.dtype]
    for name, parameter in model.named_parameters():
        if part_of(name) != "LoRA" and not name.startswith("patches."):
            parameter.data = parameter.data.to(dtype)


def _count_parameters(model: PatchedModel) -> dict[str, Row]:
    """Parameters, trainable ones and bytes of each part."""
    rows = dict.fromkeys([*PARTS.values(), *(f"patch {name}" for name in model.patches)], Row())
    for name, x in model.named_parameters():
        row = rows.get(part_of(name), Row())
        rows[part_of(name)] = replace(
            row,
            parameters=row.parameters + x.numel(),
            trainable=row.trainable + x.numel() * x.requires_grad,
            file_mb=row.file_mb + x.nbytes / 1e6,
        )
    return rows


def _with_counts(row: Row, answering: OpCounts, training: OpCounts) -> Row:
    return replace(
        row,
        gflop=answering.flops / 1e9,
        peak_mb=answering.peak_bytes / 1e6,
        kept_mb=training.saved_bytes / 1e6,
    )


@torch.no_grad()
def cost_curve(model: PatchedModel, name: str, query: Tensor, shape: Shape, config: Config, length: int) -> list[Point]:
    """Count the work against the number of side tokens."""
    prompt_flops = op_counter.count_llm(model, length, DynamicCache()).flops
    points = []
    for steps in sorted({max(1, round(shape.steps * factor)) for factor in CURVE_FACTORS}):
        size = Shape(steps, shape.per_step)
        tokens = steps * shape.per_step
        patch = op_counter.count_patch(model, name, query, size, config.sides[name].side_dim)
        longer_prompt = op_counter.count_llm(model, length + tokens, DynamicCache())
        points.append(Point(tokens, patch.flops / 1e12, (longer_prompt.flops - prompt_flops) / 1e12))
    return points


def table(p: Profile) -> str:
    """The rows, their sum and how they were counted."""
    rows = list(p.rows.values())
    total = Row(
        parameters=sum(row.parameters for row in rows),
        trainable=sum(row.trainable for row in rows),
        file_mb=sum(row.file_mb for row in rows),
        gflop=sum(row.gflop for row in rows),
        peak_mb=max(row.peak_mb for row in rows),
        kept_mb=sum(row.kept_mb for row in rows),
    )

    lines = [["part", "parameters", "trainable", "file MB", "GFLOP", "peak MB", "kept MB"]]
    for part, row in {**p.rows, "all": total}.items():
        lines.append([part, *map(_short, dataclasses.astuple(row))])
    return "\n".join([tables.aligned(lines), "", *notes(p)])


def _short(x: float) -> str:
    if isinstance(x, int):
        return f"{x:,}"
    return f"{x:,.1f}" if x >= 10 else f"{x:.3g}"


def notes(p: Profile) -> list[str]:
    """Lines that say how the numbers came about."""
    sides = "".join(f", {name} {shape.steps} x {shape.per_step}" for name, shape in p.sides.items())
    patches = "".join(f", patch {name} {_short(p.rows[f'patch {name}'].gflop / 1e3)}" for name in p.sides)
    checkpointing = "on" if p.gradient_checkpointing else "off"

    llm = f"The LLM without newlines and LoRA: {_short(p.paper_llm_tflop)} TFLOP{patches}."
    if p.base == "llava_onevision":
        llm += " For the 7B the paper's\n"
        llm += "figure has 98.5 and 0.1, likely the same count; tower and projector are not in it."
    return [
        f"One video of {p.frames} frames: {p.visual_tokens:,} visual tokens, {p.text_tokens} of text{sides}.",
        "GFLOP: a multiply-add is two. Counted: matrix products, convolutions, attention of every token to every",
        "token (causal kernels do half of the LLM's). Not counted: norms, softmax, sums, encoders of side-channels.",
        f"LoRA is not merged; merged it is no work. Each token of the answer: {_short(p.token_gflop)} GFLOP.",
        *llm.splitlines(),
        f"file: base in {p.dtype}, patches and LoRA in float32, which the official 16 bits halve. MB: 10^6 bytes.",
        f"peak: activations of an answer, {_short(p.cache_mb)} MB of it the LLM's cache. kept: for the backward pass,",
        f"a sample, gradient checkpointing {checkpointing}, no autocast.",
    ]


def save(p: Profile, file: Path) -> None:
    """Write everything as .json, or the rows as .csv. Raises UserError for another ending."""
    sides = {name: shape._asdict() for name, shape in p.sides.items()}
    curves = {name: [point._asdict() for point in points] for name, points in p.curves.items()}
    rows = [{"part": part, **dataclasses.asdict(row)} for part, row in p.rows.items()]
    document = {**dataclasses.asdict(p), "sides": sides, "curves": curves, "notes": notes(p)}
    tables.save(file, rows, document)
