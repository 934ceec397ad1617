"""`pave bench bases`: from frames to the tokens that an LLM reads, several bases in turns; true sizes, random weights.

The visual part alone has weights, and only while its turn lasts; of the LLM the work is counted on shapes.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import DynamicCache

from pave.analysis import op_counter, profile
from pave.checkpoints import build
from pave.config import BaseConfig
from pave.models.patched_model import Pave
from pave.models.trainable import part_of
from pave.types import UserError
from pave.utils.registry import nearest

DType = Literal["float32", "bfloat16"]
WORDS = 12
"""Tokens of a question, for a base that looks by it."""


class Known(NamedTuple):
    """A base at a size whose LLM has 7 or 8 billion parameters."""

    path: str
    newline: Literal["grid", "no_token"] = "no_token"
    config: dict[str, Any] | None = None
    """config.json, where no published name stands for the shapes."""


_VICUNA = {
    **{"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    **{"num_key_value_heads": 32, "vocab_size": 32064, "max_position_embeddings": 4096},
}
_PPLLAVA = {
    **{"pooling": "ppllava", "extend_clip": True, "btadapter": True, "btadapter_depth": 4, "max_T": 64},
    **{"pooling_kernel": [2, 3, 3], "pooling_stride": [2, 3, 3], "vision_config": {}, "text_config": _VICUNA},
}
BASES = {
    "llava_onevision": Known("lmms-lab/llava-onevision-qwen2-7b-ov", "grid"),
    "video_llava": Known("LanguageBind/Video-LLaVA-7B"),
    "video_panda": Known("jh-yi/Video-Panda-7B"),
    "ppllava": Known("", config=_PPLLAVA),
    "qwen2_5_vl": Known("Qwen/Qwen2.5-VL-7B-Instruct"),
    "qwen3_vl": Known("Qwen/Qwen3-VL-8B-Instruct"),
    "internvl": Known("OpenGVLab/InternVL3-8B-hf"),
}
COMPARED = ("llava_onevision", "video_llava", "video_panda", "ppllava")


@dataclass(frozen=True)
class Row:
    """One base; times are medians."""

    base: str
    tokens: int
    """That the LLM reads of the video."""
    visual_gflop: float
    llm_tflop: float
    """To read the tokens and a prompt of 46."""
    prepare_ms: float
    """Of resizing, on the clock."""
    wall_ms: float
    """Of tower, projector and layout."""
    spent_ms: float
    """The same on the processor, all threads; on a GPU, on the clock."""
    fewer_tokens: float
    """Than the first base has, this many times."""
    faster: float
    """Than the first base, by `spent_ms`."""


class Visual(NamedTuple):
    """A base without weights, what it is given, and what was counted."""

    base: Any
    frames: np.ndarray
    tokens: int
    visual: int
    llm: int


def measure(
    names: Sequence[str] = COMPARED,
    frames: int = 8,
    size: tuple[int, int] = op_counter.PICTURE,
    *,
    reps: int = 3,
    threads: int = 2,
    device: str = "cpu",
    dtype: DType = "float32",
) -> list[Row]:
    """Each base in turn, `reps` times. Raises UserError."""
    for name in names:
        if name not in BASES:
            raise UserError(f"bench bases {name}: not known at true size; {nearest(name, BASES)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device cuda: no CUDA device found; use device=cpu")
    torch.set_num_threads(threads)
    found = {name: _visual(BASES[name], name, frames, size, dtype) for name in names}
    times: dict[str, list[tuple[float, ...]]] = {name: [] for name in names}
    with tqdm(total=reps * len(names), desc="bench", unit="turn") as turns:
        for _ in range(reps):
            for name, visual in found.items():
                times[name].append(_turn(visual, device))
                turns.update()
    rows: list[Row] = []
    most = found[names[0]].tokens
    for name, visual in found.items():
        prepare, wall, cpu = (1e3 * statistics.median(x) for x in zip(*times[name]))
        # The clock of a busy machine tells of its other jobs; that of a GPU is its own.
        spent = cpu if device == "cpu" else wall
        first = rows[0].spent_ms if rows else spent
        work = (visual.tokens, visual.visual / 1e9, visual.llm / 1e12)
        rows.append(Row(name, *work, prepare, wall, spent, most / visual.tokens, first / spent))
    return rows


@torch.no_grad()
def _visual(known: Known, name: str, frames: int, size: tuple[int, int], dtype: DType) -> Visual:
    """Shapes, work and frames of noise."""
    with TemporaryDirectory() as folder:
        if known.config is not None:
            (Path(folder) / "config.json").write_text(json.dumps(known.config))
        settings = BaseConfig(name, known.path or folder, frames=frames, newline=known.newline, dtype=dtype)
        base = build.load_base(settings, weights=False).eval().to(getattr(torch, dtype))
    clip = np.random.default_rng(0).integers(0, 256, (frames, *size, 3), np.uint8)
    model = Pave(base, {})
    work, _, (_, embeds) = op_counter.look(model, frames, size)
    tokens = base.layout(embeds).shape[1]
    llm = op_counter.read(model, tokens + profile.TEXT, DynamicCache()).flops
    return Visual(base, clip, tokens, work.flops, llm)


@torch.no_grad()
def _turn(visual: Visual, device: str) -> tuple[float, float, float]:
    """Seconds of preparing the frames, of looking on the clock, and of the processor."""
    base, at = visual.base, time.perf_counter()
    pixels = base.preprocess(visual.frames)[None]
    prepared = time.perf_counter() - at
    guides = [torch.ones(1, WORDS, dtype=torch.long, device=device)] if getattr(base, "by_question", False) else []
    pixels = pixels.to(device)
    with filled(base, device):
        _wait(device)
        start, cpu_start = time.perf_counter(), time.process_time()
        seen = base.layout(base.encode(pixels, *guides).embeds)
        _wait(device)
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu_start
    assert seen.shape[1] == visual.tokens
    assert bool(seen.isfinite().all())
    return prepared, wall, cpu


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


@contextmanager
def filled(base: nn.Module, device: str) -> Iterator[None]:
    """Random weights in the visual part of a base on the meta device, for a while."""
    generator = torch.Generator(device).manual_seed(0)
    owners = [(name, owner, which) for name, owner in base.named_modules() for which in ("_parameters", "_buffers")]
    empty = []
    for name, owner, which in owners:
        for own, x in getattr(owner, which).items():
            if x is not None and x.is_meta and part_of(f"{name}.{own}") != "LLM":
                empty.append((owner, which, own, x))
    for owner, which, own, x in empty:
        new = _random(x, device, generator)
        getattr(owner, which)[own] = nn.Parameter(new, requires_grad=False) if which == "_parameters" else new
    yield
    for owner, which, own, x in empty:
        getattr(owner, which)[own] = x


def _random(x: Tensor, device: str, generator: torch.Generator) -> Tensor:
    """As large as outputs stay of the size of inputs: matrices by their width, vectors of ones, indices of zeros."""
    new = torch.empty_like(x, device=device)
    if not x.is_floating_point():
        return new.zero_()
    if x.ndim < 2:
        return new.fill_(1.0)
    spread = x[0].numel() ** -0.5
    return new.uniform_(-spread, spread, generator=generator)


def table(rows: Sequence[Row], frames: int) -> str:
    """The rows as text."""
    lines = [["base", "tokens", "a frame", "visual GFLOP", "LLM TFLOP", "prepare ms", "wall ms", "spent ms"]]
    lines[0] += ["fewer tokens", "faster"]
    for r in rows:
        times = [f"{x:,.0f}" for x in (r.prepare_ms, r.wall_ms, r.spent_ms)]
        work = [f"{r.tokens:,}", f"{r.tokens / frames:.0f}", f"{r.visual_gflop:,.0f}", f"{r.llm_tflop:.1f}"]
        lines.append([r.base, *work, *times, f"{r.fewer_tokens:.2f}", f"{r.faster:.1f}"])
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines)
