"""`pave bench extract` and `pave bench decode`: how fast items are read and encoded, and what seeking saves."""

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

READ_CLIP = """import pathlib, sys
from pave.media.video import read_clip
read_clip(pathlib.Path(sys.argv[1]), 32)"""
READ_ALL = """import sys, av
with av.open(sys.argv[1]) as file:
    for frame in file.decode(video=0):
        frame.to_ndarray(format="rgb24")"""


class Row(NamedTuple):
    """One line of the table."""

    step: str
    seconds: float
    """On the clock."""
    rate: str


def measure_extraction(
    name: str, source: Path, weights: str, options: Sequence[str], settings: extraction.Settings
) -> list[Row]:
    """Time reading and encoding in this process, then `pave extract`, over all items of a folder or list.

    Raises UserError, as `pave extract`, at the first item that fails.
    """
    side = extraction.side_to_extract(name)
    side_options = configs.options(side.options_type, options)
    items = extraction.list_items(side, source)
    encoder = side.build(Path(configs.resolve(weights)), side_options, torch.device(settings.device)).eval()
    read = side.reader(encoder, side_options)

    reading = encoding = 0.0
    steps = 0
    for item in tqdm(items, desc="bench", unit="item"):
        start = time.perf_counter()
        inputs = read(item.path)
        read_at = time.perf_counter()
        steps += len(side.encode(inputs, encoder, side_options).x)
        reading += read_at - start
        encoding += time.perf_counter() - read_at

    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        extraction.main(name, source, Path(folder), weights, options, settings)
        total = time.perf_counter() - start

    seconds = {
        "read and prepare": reading,
        "encode": encoding,
        f"pave extract, {settings.workers} worker(s)": total,
    }
    rows = [Row(step, t, f"{len(items) / t:.1f} items/s, {steps / t:.1f} steps/s") for step, t in seconds.items()]
    idle_share = 1 - min(encoding / total, 1)
    rows.append(Row("  of it the encoder idle", total - encoding, f"{100 * idle_share:.0f} %, its start included"))
    return rows


def measure_decoding(video: Path) -> list[Row]:
    """Time 32 frames with seeking against every frame, each in its own process, imports included.

    Raises UserError for a video that cannot be decoded.
    """
    every_frame, clip = _run_process(READ_ALL, video), _run_process(READ_CLIP, video)
    faster = (
        f"{every_frame.wall / clip.wall:.1f} times faster on the clock, "
        f"{every_frame.cpu / clip.cpu:.1f} times in CPU time"
    )
    return [
        Row("every frame", every_frame.wall, f"{every_frame.cpu:.2f} s of CPU"),
        Row("32 frames", clip.wall, f"{clip.cpu:.2f} s of CPU"),
        Row("seeking", clip.wall, faster),
    ]


class _Time(NamedTuple):
    """Seconds."""

    wall: float
    cpu: float


def _run_process(code: str, video: Path) -> _Time:
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = subprocess.run([sys.executable, "-c", code, str(video)], capture_output=True, text=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)

    if process.returncode:
        raise UserError(f"{video}: cannot be decoded: {process.stderr.strip().splitlines()[-1]}")
    return _Time(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def table(rows: Sequence[Row]) -> str:
    """The rows as text."""
    return "\n".join(f"{row.step:<28}{row.seconds:>9.2f} s  {row.rate}" for row in rows)
