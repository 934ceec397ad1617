"""Scenes as ScanNet's SensReader exports them, or in our plain layout, to the posed layout (pave/media/rgbd.py).

That is the step before the 3D features which the release left open.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from pave.media import rgbd
from pave.types import UserError
from pave.utils.atomic import atomic_folder

log = logging.getLogger(__name__)
JPEG_QUALITY = 95
"""For colour pictures that are no JPEG yet; others are copied."""


def main(raw: Path, out: Path, every: int = 10) -> int:
    """Write out/NAME for every scene at or below a folder: each `every`-th frame, without those that have no pose.

    Scenes that are there already stay, so that a killed run can be started again. Returns how many were written.
    UserError at the end if any scene failed, or at once where `out` holds a scene of another `every`.
    """
    if every < 1:
        raise UserError(f"every={every}: expected at least 1, each frame")
    failures, written = [], 0
    for item in rgbd.find(raw):
        target = out / item.name
        if target.exists():
            _must_match(target, every)
            continue
        for leftover in target.parent.glob(f".{target.name}.*.tmp"):  # of a killed run
            shutil.rmtree(leftover)
        try:
            count = _export(item.path, target, every)
        except UserError as error:
            failures.append(str(error))
            log.warning("%s", error)
        else:
            written += 1
            log.info("%s: %d frames", target, count)
    if failures:
        raise UserError(f"{raw}: {len(failures)} scenes failed, as: {failures[0]}")
    return written


def _must_match(target: Path, every: int) -> None:
    path = target / rgbd.SETTINGS
    made = json.loads(path.read_bytes()).get("every") if path.is_file() else None
    if made != every:
        raise UserError(f"{target}: is there with every={made}, not {every}; choose another folder or delete it")


def _export(folder: Path, target: Path, every: int) -> int:
    """One scene, whole or not at all; returns the number of its frames."""
    frames = [frame for frame in rgbd.frames(folder) if frame.number % every == 0]
    if not frames:
        raise UserError(f"{folder}: no frame with a pose among each {every}-th; take more of them with --every")
    settings: dict[str, Any] = {"depth_scale": rgbd.depth_scale(folder), "every": every}
    align = rgbd.axis_align(folder)
    if align is not None:
        settings["axis_align"] = align.tolist()
    with atomic_folder(target) as temporary:
        for frame in frames:
            name = f"{frame.number:05}"
            if not frame.depth.is_file():
                raise UserError(f"{frame.depth}: no such file; each frame needs a depth picture")
            shutil.copyfile(frame.depth, temporary / rgbd.POSED.depth.format(name))
            _write_color(frame.color, temporary / f"{name}.jpg")
            _write_matrix(temporary / rgbd.POSED.pose.format(name), frame.pose)
            own = rgbd.own_lens(frame)
            if own:
                _write_matrix(temporary / rgbd.OWN_INTRINSIC.format(name), own.matrix)
        for lens in rgbd.shared_lenses(folder):
            shared = rgbd.POSED.depth_intrinsic if lens.of_depth else rgbd.POSED.intrinsic
            _write_matrix(temporary / shared, lens.matrix)
        (temporary / rgbd.SETTINGS).write_text(json.dumps(settings, indent=1))
    return len(frames)


def _write_color(source: Path, target: Path) -> None:
    if source.suffix == ".png":
        rgbd.read_color(source).save(target, quality=JPEG_QUALITY)
    else:
        shutil.copyfile(source, target)


def _write_matrix(path: Path, matrix: np.ndarray) -> None:
    path.write_text("".join(" ".join(repr(float(x)) for x in row) + "\n" for row in matrix))
