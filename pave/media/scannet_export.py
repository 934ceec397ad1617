"""Export scenes in ScanNet's SensReader layout, or in our plain one, to the posed layout of pave/media/rgbd.py.

The official code leaves this step before the 3D features open.
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
from pave.utils.json_files import read_json

log = logging.getLogger(__name__)
JPEG_QUALITY = 95
"""For colour images that are no JPEG yet; others are copied."""


def main(raw: Path, out: Path, every: int = 10) -> int:
    """Write out/NAME for every scene at or below a folder: each `every`-th frame, without those that have no pose.

    Existing scenes stay, so that a killed run can be started again. Returns how many were written. Raises UserError at
    the end if any scene failed, or at once where `out` holds a scene of another `every`.
    """
    if every < 1:
        raise UserError(f"every={every}: expected at least 1, each frame")

    failures: list[str] = []
    num_written = 0
    for item in rgbd.find_scenes(raw):
        target = out / item.name
        if target.exists():
            _check_same_export(target, every)
            continue
        for partial_folder in target.parent.glob(f".{target.name}.*.tmp"):  # of a killed run
            shutil.rmtree(partial_folder)

        try:
            num_frames = _export_scene(item.path, target, every)
        except UserError as error:
            failures.append(str(error))
            log.warning("%s", error)
        else:
            num_written += 1
            log.info("%s: %d frames", target, num_frames)

    if failures:
        raise UserError(f"{raw}: {len(failures)} scenes failed, as: {failures[0]}")
    return num_written


def _check_same_export(target: Path, every: int) -> None:
    path = target / rgbd.SETTINGS
    stored = read_json(path, "what `pave prepare` wrote").get("every") if path.is_file() else None
    if stored != every:
        raise UserError(f"{target}: is there with every={stored}, not {every}; choose another folder or delete it")


def _export_scene(folder: Path, target: Path, every: int) -> int:
    """Write one scene, whole or not at all; returns the number of its frames."""
    frames = [frame for frame in rgbd.list_frames(folder) if frame.number % every == 0]
    if not frames:
        raise UserError(f"{folder}: no frame with a pose among each {every}-th; take more of them with --every")

    settings: dict[str, Any] = {"depth_scale": rgbd.read_depth_scale(folder), "every": every}
    axis_align = rgbd.read_axis_align(folder)
    if axis_align is not None:
        settings["axis_align"] = axis_align.tolist()

    with atomic_folder(target) as temporary:
        for frame in frames:
            name = f"{frame.number:05}"
            if not frame.depth.is_file():
                raise UserError(f"{frame.depth}: no such file; each frame needs a depth picture")
            shutil.copyfile(frame.depth, temporary / rgbd.POSED.depth.format(name))
            _write_color(frame.color, temporary / f"{name}.jpg")
            _write_matrix(temporary / rgbd.POSED.pose.format(name), frame.pose)
            frame_intrinsics = rgbd.frame_intrinsics(frame)
            if frame_intrinsics:
                _write_matrix(temporary / rgbd.FRAME_INTRINSIC.format(name), frame_intrinsics.matrix)

        for intrinsics in rgbd.shared_intrinsics(folder):
            file = rgbd.POSED.depth_intrinsic if intrinsics.of_depth else rgbd.POSED.intrinsic
            _write_matrix(temporary / file, intrinsics.matrix)
        (temporary / rgbd.SETTINGS).write_text(json.dumps(settings, indent=1))
    return len(frames)


def _write_color(source: Path, target: Path) -> None:
    if source.suffix == ".png":
        rgbd.read_color(source).save(target, quality=JPEG_QUALITY)
    else:
        shutil.copyfile(source, target)


def _write_matrix(path: Path, matrix: np.ndarray) -> None:
    path.write_text("".join(" ".join(repr(float(x)) for x in row) + "\n" for row in matrix))
