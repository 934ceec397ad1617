"""What an answer was based on: the video, its frames, and the side-channel steps that each frame attends to."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from pave.media.video import VideoInfo
from pave.models.patch.patch import Patch
from pave.models.patch.windows import WindowGather, Windows
from pave.types import SideTokens

WIDTH = 48
"""Characters of the time line."""


@dataclass(frozen=True)
class SideProvenance:
    """The tokens of one side-channel. The HTTP API documents these field names."""

    source: str
    """Name of the file it was taken from."""
    absent: str = ""
    """Reason why there are no tokens; the fields below are then empty."""
    note: str = ""
    """Something unusual about the file, such as silence."""
    steps: int = 0
    tokens: int = 0
    """Tokens of one step."""
    seconds: list[float] | None = None
    """Middle of each step, or None where the channel has no clock."""
    windows: list[tuple[int, int]] | None = None
    """For each frame the first step that it attends to, and the step after the last."""


@dataclass(frozen=True)
class Provenance:
    """One video with its side-channels. The HTTP API documents these field names."""

    video: str
    """Name of the file."""
    info: VideoInfo | None
    """None for a folder of pictures."""
    looked_at: int
    """Number of decoded frames."""
    frames: list[float]
    """Seconds at which each frame of the model is shown; some bases merge several decoded frames into one."""
    sides: dict[str, SideProvenance]


def describe_side(patch: Patch, tokens: SideTokens, frame_seconds: Tensor, source: str, note: str) -> SideProvenance:
    """Describe the tokens that a patch gets and the window of each frame; `frame_seconds` float[T]."""
    steps, tokens_per_step, _ = tokens.x.shape
    clock = None if tokens.seconds is None else [tokens.seconds]
    plan = patch.plan_windows([steps], len(frame_seconds), None, clock, [frame_seconds])

    # One row where all frames share a window, else one row a frame.
    has_shared_window = plan.start.shape[1] == 1
    windows = [_window_steps(plan, 0 if has_shared_window else frame) for frame in range(len(frame_seconds))]
    seconds = None if tokens.seconds is None else tokens.seconds.tolist()
    return SideProvenance(source, "", note, steps, tokens_per_step, seconds, windows)


def _window_steps(plan: Windows, row: int) -> tuple[int, int]:
    """The first step of a window, and the step after its last."""
    gather = WindowGather(plan, slice(row, row + 1), 1, torch.zeros(1))
    start, stop = gather.span.start, gather.span.stop
    if gather.empty is not None:
        return start, start

    if gather.weight is not None and gather.low is not None:
        # A stretched window ends on a step, or between two.
        stop = start + 1 + int(torch.where(gather.weight > 0, gather.high, gather.low).max())
    return start, stop


def as_json(provenance: Provenance) -> dict[str, Any]:
    """Convert to plain dicts and lists, as the HTTP API documents them."""
    return asdict(provenance)


def as_text(provenance: Provenance, patches: Collection[str] | None = None) -> str:
    """Describe all of it in words and time lines; `patches` are those switched on, None: all."""
    active = provenance.sides.keys() if patches is None else patches
    frames = f"{provenance.looked_at} frames"
    if len(provenance.frames) != provenance.looked_at:
        frames += f" as {len(provenance.frames)}"

    lines = [f"video: {provenance.video}, {_video_text(provenance.info)}; {frames} are looked at"]
    time_lines = []
    for name, side in provenance.sides.items():
        if side.absent:
            lines.append(f"{name}: not used: {side.absent}")
        elif name not in active:
            lines.append(f"{name}: switched off; {_side_text(side)}")
        else:
            lines.append(f"{name}: {_side_text(side)}")
            time_lines.append(_time_line(provenance, name, side))
    return "\n\n".join(["\n".join(lines), *time_lines])


def _video_text(info: VideoInfo | None) -> str:
    if info is None:
        return "a folder of pictures"
    sound = "a sound track" if info.has_audio else "no sound track"
    return f"{info.seconds:.2f} s, {info.frames} frames of {info.width}x{info.height}, {sound}"


def _side_text(side: SideProvenance) -> str:
    counts = sorted({stop - start for start, stop in side.windows or ()})
    window = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    tokens = "1 token" if side.tokens == 1 else f"{side.tokens} tokens"
    note = f" ({side.note})" if side.note else ""
    return f"from {side.source}{note}, {side.steps} steps of {tokens}; a frame sees {window}"


def _time_line(provenance: Provenance, name: str, side: SideProvenance) -> str:
    """Draw one line a frame: its time, and the steps of a side-channel that it attends to."""
    video_end = provenance.info.seconds if provenance.info else 0.0
    end = max([video_end, *provenance.frames, *(side.seconds or ())]) or 1.0

    # Without a clock, steps are drawn evenly over the video, which is how the patch takes them.
    times = side.seconds or [(step + 0.5) / side.steps * end for step in range(side.steps)]
    clock = "" if side.seconds else ", which has no clock"
    lines = [f"{name}{clock}: o frame, = the steps that it sees, * both; 0 s to {end:.2f} s"]

    for number, (seconds, (start, stop)) in enumerate(zip(provenance.frames, side.windows or ()), 1):
        cells = [" "] * WIDTH
        if stop > start:
            # The steps of several cameras share their times.
            columns = [_column(time, end) for time in times[start:stop]]
            cells[min(columns) : max(columns) + 1] = "=" * (max(columns) + 1 - min(columns))
        frame = _column(seconds, end)
        cells[frame] = "o" if cells[frame] == " " else "*"
        lines.append(f"{number:4d} {seconds:8.2f} s |{''.join(cells)}| {_step_range(start, stop)}")
    return "\n".join(lines)


def _column(seconds: float, end: float) -> int:
    return min(int(seconds / end * WIDTH), WIDTH - 1)


def _step_range(start: int, stop: int) -> str:
    """Steps numbered from 1, as the frames are."""
    if stop == start:
        return "no step"
    return f"step {start + 1}" if stop == start + 1 else f"steps {start + 1}-{stop}"
