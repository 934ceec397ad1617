"""`pave bench extract`: how fast items are read and encoded, alone and together, and what seeking saves."""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from pave import config as configs
from pave.data import extraction
from pave.types import UserError

READ_CLIP = "import sys, pathlib; from pave.media.video import read_clip; read_clip(pathlib.Path(sys.argv[1]), 32)"
READ_ALL = """import sys, av
with av.open(sys.argv[1]) as file:
    for frame in file.decode(video=0):
        frame.to_ndarray(format="rgb24")"""


class Row(NamedTuple):
    """One line of the table."""

    what: str
    seconds: float
    """On the clock."""
    rate: str


def side(side: str, source: Path, weights: str, options: Sequence[str], settings: extraction.Settings) -> list[Row]:
    """Reading alone in this process, encoding alone, and `pave extract` as it is, over all items of a folder or list.

    UserError: as `pave extract`, at the first item that fails.
    """
    channel = extraction.side_to_extract(side)
    chosen = configs.options(channel.options_type, options)
    items = extraction.list_items(channel, source)
    encoder = channel.build(Path(configs.resolve(weights)), chosen, torch.device(settings.device)).eval()
    read = channel.reader(encoder, chosen)
    reading = encoding = 0.0
    steps = 0
    for item in tqdm(items, desc="bench", unit="item"):
        start = time.perf_counter()
        inputs = read(item.path)
        middle = time.perf_counter()
        steps += len(channel.encode(inputs, encoder, chosen).x)
        reading, encoding = reading + middle - start, encoding + time.perf_counter() - middle
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        extraction.main(side, source, Path(folder), weights, options, settings)
        whole = time.perf_counter() - start
    rows = [("read and prepare", reading), ("encode", encoding), (f"pave extract, {settings.workers} worker(s)", whole)]
    idle = 1 - min(encoding / whole, 1)
    return [
        *(Row(what, t, f"{len(items) / t:.1f} items/s, {steps / t:.1f} steps/s") for what, t in rows),
        Row("  of it the encoder idle", whole - encoding, f"{100 * idle:.0f} %, its start included"),
    ]


def decode(video: Path) -> list[Row]:
    """32 frames with seeking against every frame, each in a process of its own, imports included. UserError."""
    rows = [("every frame", *_process(READ_ALL, video)), ("32 frames", *_process(READ_CLIP, video))]
    (_, all_wall, all_cpu), (_, wall, cpu) = rows
    saved = f"{all_wall / wall:.1f} times faster on the clock, {all_cpu / cpu:.1f} times in CPU time"
    return [*(Row(what, clock, f"{used:.2f} s of CPU") for what, clock, used in rows), Row("seeking", wall, saved)]


def _process(code: str, video: Path) -> tuple[float, float]:
    """Seconds on the clock and of CPU."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, str(video)], capture_output=True, text=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise UserError(f"{video}: cannot be decoded: {done.stderr.strip().splitlines()[-1]}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def table(rows: Sequence[Row]) -> str:
    """The rows as text."""
    return "\n".join(f"{row.what:<28}{row.seconds:>9.2f} s  {row.rate}" for row in rows)
