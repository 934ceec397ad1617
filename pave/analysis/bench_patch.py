"""`pave bench patch`: time, memory and work of the patch at the published sizes, each row in a process of its own."""

from __future__ import annotations

import csv
import io
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from pave.models.patch.patch import Patch
from pave.types import UserError
from pave.utils.atomic import atomic_file

FRAMES, TOKENS, QUERY_DIM, WIDTH, DEPTH = 32, 196, 1152, 512, 2


class SideShape(NamedTuple):
    """Steps, tokens a step and width of a side-channel."""

    steps: int
    per_step: int
    dim: int


SIDES = {
    "audio": SideShape(120, 1, 1024),
    "dense": SideShape(300, 4, 1024),
    "exo": SideShape(128, 196, 1152),
    "3d": SideShape(32, 576, 1024),
}
OUT_DIMS = {"0.5b": 896, "7b": 3584}


@dataclass(frozen=True)
class Spec:
    """What one row measures."""

    side: str
    size: str
    batch: int
    mode: str
    """`forward` (eval, no_grad) or `train` (forward and backward to the parameters)."""
    device: str
    dtype: str
    threads: int
    reps: int

    @property
    def name(self) -> str:
        """e.g. audio-0.5b-b4-train"""
        return f"{self.side}-{self.size}-b{self.batch}-{self.mode}"


class Measured(NamedTuple):
    """Medians of one row."""

    wall_ms: float
    cpu_ms: float
    peak_mb: float


@dataclass(frozen=True)
class Row:
    """One line of the table; the official module's figures where they are known for as many threads."""

    name: str
    wall_ms: float
    cpu_ms: float
    peak_mb: float
    gflop: float
    gflop_per_s: float
    official_cpu_ms: float | None = None
    official_peak_mb: float | None = None


def gflop(spec: Spec) -> float:
    """Work that the row needs, a multiply-add counted as two; norms, softmax, GELU and biases are not counted."""
    side, out_dim = SIDES[spec.side], OUT_DIMS[spec.size]
    keys, tokens = side.steps * side.per_step, FRAMES * TOKENS
    input_maps = keys * side.dim * WIDTH + tokens * QUERY_DIM * WIDTH
    attention = tokens * WIDTH**2 + keys * WIDTH**2 + 2 * TOKENS * keys * WIDTH
    feed_forward = 4 * tokens * WIDTH**2
    out = 2 * tokens * WIDTH * (WIDTH + out_dim)
    rest = DEPTH * (attention + feed_forward) + out
    # A backward pass does every product twice more, except that the inputs need no gradient.
    total = 2 * input_maps + 3 * rest if spec.mode == "train" else input_maps + rest
    return 2 * spec.batch * total / 1e9


def patch(
    threads: int = 2,
    device: str = "cpu",
    rows: list[str] | None = None,
    *,
    dtype: str = "float32",
    reps: int = 5,
    against: Path | None = None,
) -> list[Row]:
    """Measure the rows whose names match one of the patterns (None: all), e.g. `audio-*` or `*-b4-train`.

    `against` holds the official module's figures (tests/golden/module/baseline.json). Raises UserError.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device cuda: no CUDA device found; use device=cpu")
    official = json.loads(against.read_text())["rows"].get(str(threads), {}) if against and device == "cpu" else {}
    specs = [
        Spec(*case, device, dtype, threads, reps) for case in product(SIDES, OUT_DIMS, (1, 4), ("forward", "train"))
    ]
    chosen = [s for s in specs if rows is None or any(fnmatch(s.name, pattern) for pattern in rows)]
    if not chosen:
        raise UserError(f"no row matches {rows}; rows are named like {specs[0].name}")
    return [_row(spec, official.get(spec.name, {})) for spec in tqdm(chosen, desc="bench", unit="row")]


def table(rows: list[Row]) -> str:
    """The rows as text; the official columns only where there is something in them."""
    head = ["row", "wall ms", "CPU ms", "peak MB", "GFLOP", "GFLOP/s", "official CPU ms", "official peak MB"]
    lines = [[r.name, *("" if v is None else f"{v:.0f}" for v in list(asdict(r).values())[1:])] for r in rows]
    shown = len(head) if any(r.official_cpu_ms is not None for r in rows) else len(head) - 2
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(shown)]
    return "\n".join("  ".join(line[i].rjust(widths[i]) for i in range(shown)) for line in [head, *lines])


def save(rows: Sequence[Any], file: Path) -> None:
    """Write rows, which are dataclasses, as .json or .csv, whole or not at all. Raises UserError for another ending."""
    if file.suffix == ".json":
        text = json.dumps([asdict(r) for r in rows], indent=1)
    elif file.suffix == ".csv":
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, list(asdict(rows[0])))
        writer.writeheader()
        writer.writerows(asdict(r) for r in rows)
        text = buffer.getvalue()
    else:
        raise UserError(f"{file}: results are written as .json or .csv, not '{file.suffix}'")
    with atomic_file(file) as temporary:
        temporary.write_text(text)


def _row(spec: Spec, official: dict[str, float]) -> Row:
    # Passive waiting: threads that spin at a barrier would count as work done.
    env = {**os.environ, "OMP_NUM_THREADS": str(spec.threads), "OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, "-m", "pave.analysis.bench_patch", json.dumps(asdict(spec))]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    measured = Measured(*json.loads(done.stdout))
    work = gflop(spec)
    speed = work / measured.wall_ms * 1e3
    return Row(spec.name, *measured, work, speed, official.get("cpu_ms"), official.get("peak_mb"))


def measure(spec: Spec) -> Measured:
    """Run one row in this process: a warm-up, then `reps` timed runs; the peak is what came on top of the inputs."""
    torch.set_num_threads(spec.threads)
    torch.manual_seed(0)
    side, out_dim = SIDES[spec.side], OUT_DIMS[spec.size]
    to = torch.empty(0, device=spec.device, dtype={"float32": torch.float32, "bfloat16": torch.bfloat16}[spec.dtype])
    model = Patch(side.dim, QUERY_DIM, out_dim, width=WIDTH, depth=DEPTH).to(to)
    assert model.out_norm is not None
    torch.nn.init.ones_(model.out_norm.weight)
    query = to.new_empty(spec.batch, FRAMES, TOKENS, QUERY_DIM).normal_()
    x = to.new_empty(spec.batch, side.steps, side.per_step, side.dim).normal_()
    before = _memory_mb(spec.device).now
    wall, cpu = [], []
    for _ in range(1 + spec.reps):
        start, cpu_start = time.perf_counter(), time.process_time()
        if spec.mode == "train":
            model.train().zero_grad(set_to_none=True)
            model(query, x).sum().backward()
        else:
            with torch.no_grad():
                model.eval()(query, x)
        if spec.device == "cuda":
            torch.cuda.synchronize()
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - cpu_start)
    peak = _memory_mb(spec.device).peak - before
    return Measured(1e3 * statistics.median(wall[1:]), 1e3 * statistics.median(cpu[1:]), peak)


class _Memory(NamedTuple):
    now: float
    peak: float


def _memory_mb(device: str) -> _Memory:
    """Resident memory of the process, or what tensors hold on the GPU, in MiB."""
    if device == "cuda":
        return _Memory(torch.cuda.memory_allocated() / 2**20, torch.cuda.max_memory_allocated() / 2**20)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return _Memory(int(status["VmRSS"].split()[0]) / 1024, int(status["VmHWM"].split()[0]) / 1024)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(Spec(**json.loads(sys.argv[1])))))
