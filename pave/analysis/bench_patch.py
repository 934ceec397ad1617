"""`pave bench patch`: time, memory and work of the patch at the published sizes, each row in its own process.

Times of two machines or two hours cannot be compared: `--against` runs a second patch in turn with the first.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from itertools import product
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from pave import config as configs
from pave.data.extraction import DTYPES
from pave.models.patch.patch import Patch
from pave.types import UserError
from pave.utils import tables

DType = Literal["float32", "bfloat16"]
FRAMES, TOKENS, QUERY_DIM = 32, 196, 1152
"""Queries: key frames, tokens of each, and their width."""


class SideShape(NamedTuple):
    """Size of a side-channel."""

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
"""Width of the LLM's tokens by its size."""


@dataclass(frozen=True)
class PatchSettings:
    """Settings of a measured patch; the defaults are the published sizes."""

    dtype: DType = "float32"
    hidden_dim: int = 512
    side_hidden_dim: int = 512
    heads: int = 4
    num_layers: int = 2
    rope: bool = False


@dataclass(frozen=True)
class Spec:
    """What one row measures."""

    side: str
    size: str
    batch: int
    mode: str
    """`forward` (eval, no_grad) or `train` (forward and backward to the parameters)."""
    settings: PatchSettings = PatchSettings()
    against: PatchSettings | None = None
    """A second patch, which runs in turn with the first."""
    device: str = "cpu"
    threads: int = 2
    repetitions: int = 5

    @property
    def name(self) -> str:
        """Such as audio-0.5b-b4-train."""
        return f"{self.side}-{self.size}-b{self.batch}-{self.mode}"

    @staticmethod
    def from_json(text: str) -> Spec:
        """Read what `json.dumps(asdict(spec))` wrote."""
        values = json.loads(text)
        for name in ("settings", "against"):
            if values[name] is not None:
                values[name] = PatchSettings(**values[name])
        return Spec(**values)


@dataclass(frozen=True)
class Row:
    """One line of the table; times are medians."""

    name: str
    wall_ms: float
    cpu_ms: float
    """Of all threads."""
    peak_mb: float
    """Memory on top of weights and inputs, MiB."""
    gflop: float
    against_ms: float | None = None
    """Time of the second patch: CPU time, on a GPU the time on the clock."""
    ratio: float | None = None
    """Time of the second patch over that of the first."""


def gflop(spec: Spec) -> float:
    """Count the work of a row, a multiply-add as two; norms, softmax, GELU and biases are not counted."""
    side, out_dim, settings = SIDES[spec.side], OUT_DIMS[spec.size], spec.settings
    width, side_width = settings.hidden_dim, settings.side_hidden_dim
    keys, tokens = side.steps * side.per_step, FRAMES * TOKENS

    input_maps = keys * side.dim * side_width + tokens * QUERY_DIM * width
    attention = tokens * width**2 + keys * side_width * width + 2 * TOKENS * keys * width
    feed_forward = 4 * tokens * width**2
    output_maps = 2 * tokens * width * (width + out_dim)
    layers_and_output = settings.num_layers * (attention + feed_forward) + output_maps

    # A backward pass does every product twice more, except that the inputs need no gradient.
    is_training = spec.mode == "train"
    total = 2 * input_maps + 3 * layers_and_output if is_training else input_maps + layers_and_output
    return 2 * spec.batch * total / 1e9


def measure_rows(
    patterns: Sequence[str] = (),
    *,
    threads: int = 2,
    device: str = "cpu",
    dtype: DType = "float32",
    repetitions: int = 5,
    against: Sequence[str] = (),
) -> list[Row]:
    """Measure the rows whose names match a pattern, such as `audio-*` or `*-b4-train`; without patterns all.

    `against` are `key=value` settings of a second patch. Raises UserError for an unknown setting or no matching row.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device cuda: no CUDA device found; use device=cpu")
    settings = PatchSettings(dtype)
    second = configs.options(PatchSettings, [f"dtype={dtype}", *against]) if against else None

    specs = []
    for side, size, batch, mode in product(SIDES, OUT_DIMS, (1, 4), ("forward", "train")):
        spec = Spec(side, size, batch, mode, settings, second, device, threads, repetitions)
        if not patterns or any(fnmatch(spec.name, pattern) for pattern in patterns):
            specs.append(spec)
    if not specs:
        raise UserError(f"no row matches {list(patterns)}; rows are named like audio-0.5b-b1-forward")
    return [_measure_in_process(spec) for spec in tqdm(specs, desc="bench", unit="row")]


def table(rows: Sequence[Row]) -> str:
    """The rows as text; the columns of a second patch only where there is one."""
    head = ["row", "wall ms", "CPU ms", "peak MB", "GFLOP"]
    lines = [
        [row.name, *(f"{value:.0f}" for value in (row.wall_ms, row.cpu_ms, row.peak_mb, row.gflop))] for row in rows
    ]
    if rows[0].ratio is not None:
        head += ["second ms", "second / first"]
        for line, row in zip(lines, rows):
            line += [f"{row.against_ms:.0f}", f"{row.ratio:.2f}"]
    return tables.aligned([head, *lines])


def _measure_in_process(spec: Spec) -> Row:
    # Passive waiting: threads that spin at a barrier would count as work done.
    environment = {**os.environ, "OMP_NUM_THREADS": str(spec.threads), "OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, "-m", "pave.analysis.bench_patch", json.dumps(asdict(spec))]
    process = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return Row(**json.loads(process.stdout))


def measure(spec: Spec) -> Row:
    """Measure one row in this process: a warm-up of each patch, then timed runs in turn."""
    torch.set_num_threads(spec.threads)
    torch.manual_seed(0)

    first = _Runner(spec, spec.settings)
    before = _memory_mb(spec.device).current
    first.run()
    # Read before the second patch exists, since a peak never falls.
    peak_mb = _memory_mb(spec.device).peak - before

    runners = [first]
    if spec.against is not None:
        runners.append(_Runner(spec, spec.against))
        runners[1].run()

    times: list[list[_Time]] = [[] for _ in runners]
    for _ in range(spec.repetitions):
        for runner, runs in zip(runners, times):
            runs.append(runner.run())

    wall_ms, *wall_against = (1e3 * statistics.median(run.wall for run in runs) for runs in times)
    cpu_ms, *cpu_against = (1e3 * statistics.median(run.cpu for run in runs) for runs in times)
    row = Row(spec.name, wall_ms, cpu_ms, peak_mb, gflop(spec))
    if spec.against is None:
        return row

    # The clock of a busy machine counts its other jobs too; the work of a GPU is not CPU time.
    (against_ms,), own_ms = (cpu_against, cpu_ms) if spec.device == "cpu" else (wall_against, wall_ms)
    return replace(row, against_ms=against_ms, ratio=against_ms / own_ms)


class _Time(NamedTuple):
    """Seconds."""

    wall: float
    cpu: float


class _Runner:
    """A patch with random weights and its inputs."""

    def __init__(self, spec: Spec, settings: PatchSettings) -> None:
        self.spec = spec
        side = SIDES[spec.side]
        sizes = asdict(settings)
        like = torch.empty(0, device=spec.device, dtype=DTYPES[sizes.pop("dtype")])

        self.patch = Patch(side.dim, QUERY_DIM, OUT_DIMS[spec.size], **sizes).to(like)
        assert self.patch.out_norm is not None
        torch.nn.init.ones_(self.patch.out_norm.weight)
        self.query: Tensor = like.new_empty(spec.batch, FRAMES, TOKENS, QUERY_DIM).normal_()
        self.side: Tensor = like.new_empty(spec.batch, side.steps, side.per_step, side.dim).normal_()

    def run(self) -> _Time:
        """Run once."""
        start, cpu_start = time.perf_counter(), time.process_time()
        if self.spec.mode == "train":
            self.patch.train().zero_grad(set_to_none=True)
            self.patch(self.query, self.side).sum().backward()
        else:
            with torch.no_grad():
                self.patch.eval()(self.query, self.side)
        if self.spec.device == "cuda":
            torch.cuda.synchronize()
        return _Time(time.perf_counter() - start, time.process_time() - cpu_start)


class _Memory(NamedTuple):
    """MiB: resident in the process, or held by tensors on the GPU."""

    current: float
    peak: float


def _memory_mb(device: str) -> _Memory:
    if device == "cuda":
        return _Memory(torch.cuda.memory_allocated() / 2**20, torch.cuda.max_memory_allocated() / 2**20)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return _Memory(int(status["VmRSS"].split()[0]) / 1024, int(status["VmHWM"].split()[0]) / 1024)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(measure(Spec.from_json(sys.argv[1])))))
