"""Read RGB-D scenes: folders of posed colour and depth images of one room, in one of three layouts.

posed  00000.jpg, 00000.png (depth), 00000.txt (pose), intrinsic.txt, depth_intrinsic.txt: EmbodiedScan's posed_images
sens   color/0.jpg, depth/0.png, pose/0.txt, intrinsic/intrinsic_{color,depth}.txt: what ScanNet's SensReader writes
plain  0.jpg or 0.png, 0.depth.png, 0.pose.txt, intrinsic.txt, depth_intrinsic.txt: for any other data

Depth is a 16-bit picture. A pose is 4x4, camera to world in metres, the camera's x to the right, y down, z ahead.
Intrinsics are 3x3 or 4x4, in pixels of the depth picture or else of the colour picture, for all views or, as
0.intrinsic.txt, for one. Optional in all layouts: scene.json {"depth_scale": 1000, "axis_align": 4x4}.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from pave.types import MediaItem, UserError
from pave.utils.json_files import read_json

DEPTH_SCALE = 1000.0
"""Units of a depth picture in a metre, where nothing is stated."""
SETTINGS = "scene.json"
SETTINGS_KEYS = {"depth_scale", "axis_align", "every"}
"""`every` is only noted, by the export."""


class Layout(NamedTuple):
    """File names of a layout; {} stands for the name of a frame."""

    colors: tuple[str, ...]
    depth: str
    pose: str
    intrinsic: str
    depth_intrinsic: str
    scannet: bool = True
    """ScanNet's poses need an alignment, so that z is up; others are taken to be in the world already."""


POSED = Layout(("*.jpg",), "{}.png", "{}.txt", "intrinsic.txt", "depth_intrinsic.txt")
SENS = Layout(
    ("color/*.jpg",), "depth/{}.png", "pose/{}.txt", "intrinsic/intrinsic_color.txt", "intrinsic/intrinsic_depth.txt"
)
PLAIN = Layout(
    ("*.jpg", "*.jpeg", "*.png"), "{}.depth.png", "{}.pose.txt", "intrinsic.txt", "depth_intrinsic.txt", scannet=False
)
FRAME_INTRINSIC = "{}.intrinsic.txt"


class Frame(NamedTuple):
    """One view; its images are not read yet."""

    number: int
    """Index among all frames of the scene, those without a pose included."""
    color: Path
    depth: Path
    pose: np.ndarray
    """float64[4,4], camera to world, metres."""


class Intrinsics(NamedTuple):
    """Intrinsics of a view."""

    file: Path
    matrix: np.ndarray
    """float64[4,4]"""
    of_depth: bool
    """In pixels of the depth picture, else of the colour picture."""


def find_layout(folder: Path) -> Layout | None:
    """Find out the layout of a folder; None where it holds no frames."""
    if (folder / "color").is_dir():
        return SENS
    if any(folder.glob("*.depth.png")) or any(folder.glob("*.pose.txt")):
        return PLAIN
    return POSED if any(folder.glob("*.jpg")) else None


def find_scenes(source: Path) -> list[MediaItem]:
    """List the scenes at or below a folder, each named by its path below it. Raises UserError for none."""
    if find_layout(source):
        return [MediaItem(source.resolve().name, source)]

    items = []
    for folder, subfolders, _ in os.walk(source):
        paths = [Path(folder, name) for name in sorted(subfolders) if not name.startswith(".")]
        scenes = [path for path in paths if find_layout(path)]
        items += [MediaItem(path.relative_to(source).as_posix(), path) for path in scenes]
        # The walk goes into what is left in the list.
        subfolders[:] = [path.name for path in paths if path not in scenes]

    if not items:
        raise UserError(f"{source}: no RGB-D scenes in it; expected folders as doc/sides/scene3d.md shows them")
    return items


def list_frames(folder: Path) -> list[Frame]:
    """List the frames of a scene that have a finite pose, in order.

    Raises UserError: no frames, a pose missing or not 4x4, or no frame with a finite pose.
    """
    layout = find_layout(folder)
    if layout is None:
        raise UserError(f"{folder}: no RGB-D frames; expected a scene as doc/sides/scene3d.md shows it")

    colors = [file for pattern in layout.colors for file in folder.glob(pattern)]
    colors = [file for file in colors if not file.name.endswith(".depth.png")]
    colors.sort(key=lambda file: (len(file.stem), file.stem))  # so that 9 comes before 10

    frames = []
    for number, color in enumerate(colors):
        pose = _read_matrix(folder / layout.pose.format(color.stem), (16,), "a 4x4 pose")
        # ScanNet writes infinities where tracking was lost.
        if np.isfinite(pose).all():
            frames.append(Frame(number, color, folder / layout.depth.format(color.stem), pose))
    if not frames:
        raise UserError(f"{folder}: none of its {len(colors)} frames has a finite pose; leave this scene out")
    return frames


def sample_every_nth(num_frames: int, count: int) -> np.ndarray:
    """int64[count], indices of the frames to use: every (num_frames // count)-th; fewer frames are used again."""
    if num_frames < count:
        return np.arange(count) % num_frames
    return np.arange(count) * (num_frames // count)


def find_intrinsics(folder: Path, frame: Frame) -> Intrinsics:
    """A view's own intrinsics, else those of the depth camera, else of the colour camera. Raises UserError for none."""
    intrinsics = frame_intrinsics(frame)
    if intrinsics is not None:
        return intrinsics
    for intrinsics in shared_intrinsics(folder):
        return intrinsics
    raise UserError(f"{folder}: no intrinsics; expected depth_intrinsic.txt or intrinsic.txt, as its layout has them")


def frame_intrinsics(frame: Frame) -> Intrinsics | None:
    """Intrinsics of this view alone, if it has them. Raises UserError for another matrix."""
    path = frame.color.with_name(FRAME_INTRINSIC.format(frame.color.stem))
    return _read_intrinsics(path, False) if path.is_file() else None


def shared_intrinsics(folder: Path) -> list[Intrinsics]:
    """Intrinsics for all views: of the depth camera, then of the colour camera. Raises UserError for another matrix."""
    layout = find_layout(folder)
    assert layout is not None
    files = {folder / layout.depth_intrinsic: True, folder / layout.intrinsic: False}
    return [_read_intrinsics(path, of_depth) for path, of_depth in files.items() if path.is_file()]


def _read_intrinsics(path: Path, of_depth: bool) -> Intrinsics:
    matrix = _read_matrix(path, (9, 16), "3x3 or 4x4 intrinsics")
    if not np.isfinite(matrix).all() or min(matrix[0, 0], matrix[1, 1]) <= 0:
        raise UserError(
            f"{path}: focal lengths {matrix[0, 0]:g} and {matrix[1, 1]:g}, expected positive ones in pixels"
        )
    return Intrinsics(path, matrix, of_depth)


def read_depth_scale(folder: Path) -> float:
    """Units in a metre, by scene.json. Raises UserError unless it is a positive number."""
    scale = _read_settings(folder).get("depth_scale", DEPTH_SCALE)
    if not isinstance(scale, (int, float)) or not 0 < scale < np.inf:
        raise UserError(f"{folder / SETTINGS}: depth_scale {scale!r}; expected the units in a metre, such as 1000")
    return float(scale)


def read_axis_align(folder: Path) -> np.ndarray | None:
    """float64[4,4] by scene.json or ScanNet's <scene>.txt; identity where they state none.

    None in ScanNet's layouts without such a file: the scene cannot be used without an alignment.
    """
    settings, scannet_file = _read_settings(folder), folder / f"{folder.resolve().name}.txt"
    if "axis_align" in settings:
        return _to_alignment(settings["axis_align"], folder / SETTINGS)
    if scannet_file.is_file():
        match = re.search(r"^\s*axisAlignment\s*=(.*)$", scannet_file.read_text(), re.M)
        return _to_alignment(match[1].split(), scannet_file) if match else np.eye(4)
    layout = find_layout(folder)
    return None if layout and layout.scannet else np.eye(4)


def read_alignments(path: Path) -> dict[str, np.ndarray]:
    """Read float64[4,4] of each scene, by the last part of its name, from EmbodiedScan's infos. Raises UserError."""
    alignments = {}
    for name, info in read_json(path, "EmbodiedScan's infos as JSON").items():
        if isinstance(info, dict) and "axis_align_matrix" in info:
            alignments[name.rsplit("/", 1)[-1]] = _to_alignment(info["axis_align_matrix"], path)
    return alignments


def read_color(path: Path) -> Image.Image:
    """Read an RGB image. Raises UserError: missing or damaged."""
    return _open_image(path, "colour picture").convert("RGB")


def read_depth(path: Path) -> Image.Image:
    """Read a 16-bit grey image. Raises UserError: missing, damaged, or of another kind."""
    image = _open_image(path, "depth picture")
    if image.mode != "I;16":
        raise UserError(f"{path}: a picture of kind '{image.mode}', expected depth as 16-bit grey PNG; export it again")
    return image


def _open_image(path: Path, kind: str) -> Image.Image:
    if not path.is_file():
        raise UserError(f"{path}: no such file; each frame needs a {kind}")
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (OSError, SyntaxError, ValueError) as error:  # a broken PNG is a SyntaxError
        raise UserError(f"{path}: not a readable {kind}: {error}; copy it again") from error


def _read_matrix(path: Path, sizes: Sequence[int], expected: str) -> np.ndarray:
    """Read float64[4,4] from a text file of 9 or 16 numbers."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected {expected}")
    try:
        numbers = [float(word) for word in path.read_text().split()]
    except ValueError as error:
        raise UserError(f"{path}: not numbers: {error}; expected {expected}") from error
    if len(numbers) not in sizes:
        raise UserError(f"{path}: holds {len(numbers)} numbers, expected {expected}")

    edge = int(len(numbers) ** 0.5)
    matrix = np.eye(4)
    matrix[:edge, :edge] = np.reshape(numbers, (edge, edge))
    if np.isfinite(matrix).all() and not np.allclose(matrix[3], (0, 0, 0, 1), atol=1e-3):
        raise UserError(
            f"{path}: last row {matrix[3].tolist()}, expected 0 0 0 1; the matrix may have to be transposed"
        )
    return matrix


def _to_alignment(values: Any, path: Path) -> np.ndarray:
    try:
        matrix = np.array(values, dtype=np.float64).reshape(4, 4)
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: its axis alignment is not 4x4 numbers; download or export it again") from error
    if not np.isfinite(matrix).all():
        raise UserError(f"{path}: its axis alignment is not finite; download or export it again")
    return matrix


def _read_settings(folder: Path) -> dict[str, Any]:
    path = folder / SETTINGS
    settings = read_json(path, "settings of a scene; write it again") if path.is_file() else {}
    unknown = sorted(settings.keys() - SETTINGS_KEYS)
    if unknown:
        raise UserError(f"{path}: unknown key '{unknown[0]}'; known: {', '.join(sorted(SETTINGS_KEYS))}")
    return settings
