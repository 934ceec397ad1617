"""`pave bench bases`: from frames to visual tokens, several bases in turns, at true sizes with random weights.

Only the visual part has weights, and only during its turn; the work of the LLM is counted on shapes.
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
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import DynamicCache

from pave.analysis import op_counter, profile
from pave.analysis.bench_patch import DType
from pave.checkpoints import build
from pave.config import BaseConfig
from pave.data.extraction import DTYPES
from pave.models.base import Base, Newline
from pave.models.patched_model import PatchedModel
from pave.models.trainable import part_of
from pave.types import UserError
from pave.utils import tables
from pave.utils.registry import nearest

QUESTION_TOKENS = 12
"""Tokens of a question, for a base that is `prompt_conditioned`."""


class BaseSize(NamedTuple):
    """A base at a size whose LLM has 7 or 8 billion parameters."""

    path: str
    newline: Newline = "no_token"
    config: dict[str, object] | None = None
    """config.json, where no hub name gives the shapes."""


_VICUNA = {
    **{"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    **{"num_key_value_heads": 32, "vocab_size": 32064, "max_position_embeddings": 4096},
}
_PPLLAVA = {
    **{"pooling": "ppllava", "extend_clip": True, "btadapter": True, "btadapter_depth": 4, "max_T": 64},
    **{"pooling_kernel": [2, 3, 3], "pooling_stride": [2, 3, 3], "vision_config": {}, "text_config": _VICUNA},
}
BASES = {
    "llava_onevision": BaseSize("lmms-lab/llava-onevision-qwen2-7b-ov", "grid"),
    "video_llava": BaseSize("LanguageBind/Video-LLaVA-7B"),
    "video_panda": BaseSize("jh-yi/Video-Panda-7B"),
    "ppllava": BaseSize("", config=_PPLLAVA),
    "qwen2_5_vl": BaseSize("Qwen/Qwen2.5-VL-7B-Instruct"),
    "qwen3_vl": BaseSize("Qwen/Qwen3-VL-8B-Instruct"),
    "internvl": BaseSize("OpenGVLab/InternVL3-8B-hf"),
}
DEFAULT_BASES = ("llava_onevision", "video_llava", "video_panda", "ppllava")


@dataclass(frozen=True)
class Row:
    """One base; times are medians."""

    base: str
    tokens: int
    """Visual tokens that the LLM reads."""
    visual_gflop: float
    llm_tflop: float
    """Work of the LLM for the visual tokens and a prompt of 46."""
    prepare_ms: float
    """Time of resizing, on the clock."""
    wall_ms: float
    """Time of tower, projector and arrangement of tokens, on the clock."""
    spent_ms: float
    """The same in CPU time of all threads; on a GPU, on the clock."""
    fewer_tokens: float
    """Tokens of the first base over those of this one."""
    faster: float
    """`spent_ms` of the first base over that of this one."""


class VisualPart(NamedTuple):
    """A base without weights, frames for it, and its counts."""

    base: Base
    frames: np.ndarray
    tokens: int
    visual_flops: int
    llm_flops: int


class TurnTimes(NamedTuple):
    """Seconds of one turn."""

    prepare: float
    wall: float
    cpu: float


def measure_bases(
    names: Sequence[str] = DEFAULT_BASES,
    frames: int = 8,
    size: tuple[int, int] = op_counter.PICTURE_SIZE,
    *,
    repetitions: int = 3,
    threads: int = 2,
    device: str = "cpu",
    dtype: DType = "float32",
) -> list[Row]:
    """Run the bases in turns, each `repetitions` times. Raises UserError for an unknown base or without the device."""
    for name in names:
        if name not in BASES:
            raise UserError(f"bench bases {name}: not known at true size; {nearest(name, BASES)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device cuda: no CUDA device found; use device=cpu")
    torch.set_num_threads(threads)

    parts = {name: load_visual_part(name, frames, size, dtype) for name in names}
    turns: dict[str, list[TurnTimes]] = {name: [] for name in names}
    with tqdm(total=repetitions * len(names), desc="bench", unit="turn") as bar:
        for _ in range(repetitions):
            for name, part in parts.items():
                turns[name].append(_time_turn(part, device))
                bar.update()

    rows: list[Row] = []
    first_tokens = parts[names[0]].tokens
    for name, part in parts.items():
        prepare, wall, cpu = (1e3 * statistics.median(times) for times in zip(*turns[name]))
        # The clock of a busy machine counts its other jobs too; the work of a GPU is not CPU time.
        spent = cpu if device == "cpu" else wall
        first_spent = rows[0].spent_ms if rows else spent
        rows.append(
            Row(
                base=name,
                tokens=part.tokens,
                visual_gflop=part.visual_flops / 1e9,
                llm_tflop=part.llm_flops / 1e12,
                prepare_ms=prepare,
                wall_ms=wall,
                spent_ms=spent,
                fewer_tokens=first_tokens / part.tokens,
                faster=first_spent / spent,
            )
        )
    return rows


@torch.no_grad()
def load_visual_part(name: str, frames: int, size: tuple[int, int], dtype: DType) -> VisualPart:
    """Load the shapes of a base at true size, make frames of noise uint8[frames,*size,3] and count the work."""
    large_base = BASES[name]
    with TemporaryDirectory() as folder:
        if large_base.config is not None:
            (Path(folder) / "config.json").write_text(json.dumps(large_base.config))
        settings = BaseConfig(name, large_base.path or folder, frames=frames, newline=large_base.newline, dtype=dtype)
        base = build.load_base(settings, weights=False).eval().to(DTYPES[dtype])

    noise = np.random.default_rng(0).integers(0, 256, (frames, *size, 3), np.uint8)
    model = PatchedModel(base, {})
    vision = op_counter.count_vision(model, frames, size)
    tokens = base.arrange_tokens(vision.tokens.embeds).shape[1]
    llm_flops = op_counter.count_llm(model, tokens + profile.TEXT_TOKENS, DynamicCache()).flops
    return VisualPart(base, noise, tokens, vision.counts.flops, llm_flops)


@torch.no_grad()
def _time_turn(part: VisualPart, device: str) -> TurnTimes:
    """Prepare the frames and encode them once."""
    base = part.base
    start = time.perf_counter()
    pixels = base.preprocess(part.frames)[None]
    prepare = time.perf_counter() - start

    pixels = pixels.to(device)
    prompt_ids = None
    if base.prompt_conditioned:
        prompt_ids = torch.ones(1, QUESTION_TOKENS, dtype=torch.long, device=device)

    with random_weights(base, device):
        _wait(device)
        start, cpu_start = time.perf_counter(), time.process_time()
        tokens = base.arrange_tokens(base.encode(pixels, prompt_ids).embeds)
        _wait(device)
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu_start

    assert tokens.shape[1] == part.tokens
    assert bool(tokens.isfinite().all())
    return TurnTimes(prepare, wall, cpu)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


@contextmanager
def random_weights(base: nn.Module, device: str) -> Iterator[None]:
    """Give the visual part of a base on the meta device random weights; all are on the meta device again afterwards."""
    generator = torch.Generator(device).manual_seed(0)
    replaced: list[tuple[dict[str, Tensor | None], str, Tensor]] = []
    for module_name, module in base.named_modules():
        # Into torch's own tables: only so are parameters exchanged without a copy.
        for tensors in (module._parameters, module._buffers):
            for name, x in tensors.items():
                if x is None or not x.is_meta or part_of(f"{module_name}.{name}") == "LLM":
                    continue
                replaced.append((cast("dict[str, Tensor | None]", tensors), name, x))

    for tensors, name, x in replaced:
        new = _random_like(x, device, generator)
        tensors[name] = nn.Parameter(new, requires_grad=False) if isinstance(x, nn.Parameter) else new
    yield
    for tensors, name, x in replaced:
        tensors[name] = x


def _random_like(x: Tensor, device: str, generator: torch.Generator) -> Tensor:
    """Weights that keep outputs of the size of inputs: matrices by their width, vectors of ones, indices of zeros."""
    new = torch.empty_like(x, device=device)
    if not x.is_floating_point():
        return new.zero_()
    if x.ndim < 2:
        return new.fill_(1.0)
    bound = x[0].numel() ** -0.5
    return new.uniform_(-bound, bound, generator=generator)


def table(rows: Sequence[Row], frames: int) -> str:
    """The rows as text."""
    head = ["base", "tokens", "a frame", "visual GFLOP", "LLM TFLOP", "prepare ms", "wall ms", "spent ms"]
    lines = [[*head, "fewer tokens", "faster"]]
    for row in rows:
        lines.append(
            [
                row.base,
                f"{row.tokens:,}",
                f"{row.tokens / frames:.0f}",
                f"{row.visual_gflop:,.0f}",
                f"{row.llm_tflop:.1f}",
                f"{row.prepare_ms:,.0f}",
                f"{row.wall_ms:,.0f}",
                f"{row.spent_ms:,.0f}",
                f"{row.fewer_tokens:.2f}",
                f"{row.faster:.1f}",
            ]
        )
    return tables.aligned(lines)
