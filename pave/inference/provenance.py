"""What an answer was really based on: the video, its frames, and which steps of each side-channel a frame sees."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from pave.media.video import Info
from pave.models.patch import windows as window
from pave.models.patch.patch import Patch
from pave.types import SideTokens

WIDTH = 48
"""Characters of the time line."""


@dataclass(frozen=True)
class SideFacts:
    """One side-channel."""

    source: str
    """Name of the file it was taken from."""
    absent: str = ""
    """Why there is none; the fields below are then empty."""
    note: str = ""
    """What is unusual about it."""
    steps: int = 0
    tokens: int = 0
    """A step."""
    seconds: list[float] | None = None
    """The middle of each step, or None where the channel has no clock."""
    windows: list[tuple[int, int]] | None = None
    """What each frame sees: its first step, and the one after its last."""


@dataclass(frozen=True)
class Facts:
    """One video with its side-channels."""

    video: str
    """Name of the file."""
    info: Info | None
    """None for a folder of pictures."""
    looked_at: int
    """Frames that were decoded."""
    frames: list[float]
    """When each frame that the model sees is shown, in seconds; some bases take several as one."""
    sides: dict[str, SideFacts]


def side_facts(patch: Patch, tokens: SideTokens, frames: Tensor, source: str, note: str) -> SideFacts:
    """Facts of tokens that a patch gets, with frames at float[T] seconds."""
    steps, per_step, _ = tokens.x.shape
    clock = None if tokens.seconds is None else [tokens.seconds]
    plan = patch.windows([steps], len(frames), None, clock, [frames])
    rows = plan.start.shape[1]
    seen = [_seen(plan, frame if rows > 1 else 0) for frame in range(len(frames))]
    seconds = None if tokens.seconds is None else tokens.seconds.tolist()
    return SideFacts(source, "", note, steps, per_step, seconds, seen)


def _seen(plan: window.Windows, row: int) -> tuple[int, int]:
    """The steps that a window is made of: the first, and the one after the last."""
    gather = window.Gather(plan, slice(row, row + 1), 1, torch.zeros(1))
    start, stop = gather.span.start, gather.span.stop
    if gather.empty is not None:
        return start, start
    if gather.weight is not None and gather.low is not None:
        # A stretched window ends on a step, or between two.
        stop = start + 1 + int(torch.where(gather.weight > 0, gather.high, gather.low).max())
    return start, stop


def as_json(facts: Facts) -> dict[str, Any]:
    """Plain dicts and lists."""
    return asdict(facts)


def text(facts: Facts, patches: Collection[str] | None = None) -> str:
    """All of it, for people; with the patches that are on, None: all."""
    on = facts.sides.keys() if patches is None else patches
    lines = [f"video: {facts.video}, {_video(facts.info)}{_frames(facts)} looked at"]
    lines += [f"{name}: {_state(side, name in on)}" for name, side in facts.sides.items()]
    shown = [_time_line(facts, name, side) for name, side in facts.sides.items() if not side.absent and name in on]
    return "\n\n".join(["\n".join(lines), *shown])


def _state(side: SideFacts, on: bool) -> str:
    if side.absent:
        return f"not used: {side.absent}"
    return _side(side) if on else f"switched off; {_side(side)}"


def _frames(facts: Facts) -> str:
    together = "" if len(facts.frames) == facts.looked_at else f" as {len(facts.frames)}"
    return f"{facts.looked_at} frames{together} are"


def _video(info: Info | None) -> str:
    if info is None:
        return "a folder of pictures; "
    sound = "a sound track" if info.has_audio else "no sound track"
    return f"{info.seconds:.2f} s, {info.frames} frames of {info.width}x{info.height}, {sound}; "


def _side(side: SideFacts) -> str:
    counts = sorted({stop - start for start, stop in side.windows or ()})
    seen = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    tokens = "1 token" if side.tokens == 1 else f"{side.tokens} tokens"
    note = f" ({side.note})" if side.note else ""
    return f"from {side.source}{note}, {side.steps} steps of {tokens}; a frame sees {seen}"


def _time_line(facts: Facts, name: str, side: SideFacts) -> str:
    """A line for each frame: where it is in time, and which steps of a side-channel it sees."""
    ends = [facts.info.seconds if facts.info else 0.0, *facts.frames, *(side.seconds or ())]
    end = max(ends) or 1.0
    # Without a clock, steps are drawn evenly over the video, which is how the patch takes them.
    times = side.seconds or [(step + 0.5) / side.steps * end for step in range(side.steps)]
    clock = "" if side.seconds else ", which has no clock"
    lines = [f"{name}{clock}: o frame, = the steps that it sees, * both; 0 s to {end:.2f} s"]
    for number, (at, (start, stop)) in enumerate(zip(facts.frames, side.windows or ()), 1):
        cells = [" "] * WIDTH
        if stop > start:
            # The steps of several cameras share their times.
            columns = [_column(t, end) for t in times[start:stop]]
            cells[min(columns) : max(columns) + 1] = "=" * (max(columns) + 1 - min(columns))
        frame = _column(at, end)
        cells[frame] = "o" if cells[frame] == " " else "*"
        lines.append(f"{number:4d} {at:8.2f} s |{''.join(cells)}| {_steps(start, stop)}")
    return "\n".join(lines)


def _column(seconds: float, end: float) -> int:
    return min(int(seconds / end * WIDTH), WIDTH - 1)


def _steps(start: int, stop: int) -> str:
    """Numbered from 1, as the frames are."""
    if stop == start:
        return "no step"
    return f"step {start + 1}" if stop == start + 1 else f"steps {start + 1}-{stop}"
