"""RGB-D scenes: a folder of posed colour and depth pictures of one room, in one of three layouts.

posed  00000.jpg, 00000.png (depth), 00000.txt (pose), intrinsic.txt, depth_intrinsic.txt: EmbodiedScan's posed_images
sens   color/0.jpg, depth/0.png, pose/0.txt, intrinsic/intrinsic_{color,depth}.txt: what ScanNet's SensReader writes
plain  0.jpg or 0.png, 0.depth.png, 0.pose.txt, intrinsic.txt, depth_intrinsic.txt: for any other data

Depth is a 16-bit picture. A pose is 4x4, camera to world in metres, the camera's x to the right, y down, z ahead.
Intrinsics are 3x3 or 4x4, in pixels of the depth picture or else of the colour picture, for all views or, as
0.intrinsic.txt, for one. Optional in all layouts: scene.json {"depth_scale": 1000, "axis_align": 4x4}.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from pave.types import Item, UserError

DEPTH_SCALE = 1000.0
"""Units of a depth picture in a metre, where nothing is stated."""
SETTINGS = "scene.json"
SETTINGS_KEYS = {"depth_scale", "axis_align", "every"}
"""`every` is only noted, by the export."""


class Layout(NamedTuple):
    """Where a layout keeps what; {} stands for the name of a frame."""

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
OWN_INTRINSIC = "{}.intrinsic.txt"


class Frame(NamedTuple):
    """One view; its pictures are not read yet."""

    number: int
    """Place among all frames of the scene, those without a pose included."""
    color: Path
    depth: Path
    pose: np.ndarray
    """float64[4,4], camera to world, metres."""


class Lens(NamedTuple):
    """Intrinsics of a view."""

    file: Path
    matrix: np.ndarray
    """float64[4,4]"""
    of_depth: bool
    """In pixels of the depth picture, else of the colour picture."""


def layout(folder: Path) -> Layout | None:
    """How a folder keeps its frames; None where it holds none."""
    if (folder / "color").is_dir():
        return SENS
    if any(any(folder.glob(f)) for f in ("*.depth.png", "*.pose.txt")):
        return PLAIN
    return POSED if any(folder.glob("*.jpg")) else None


def find(source: Path) -> list[Item]:
    """The scenes at or below a folder, each named by its path below it. UserError: none."""
    if layout(source):
        return [Item(source.resolve().name, source)]
    items = []
    for folder, below, _ in os.walk(source):
        paths = [Path(folder, name) for name in sorted(below) if not name.startswith(".")]
        scenes = [path for path in paths if layout(path)]
        items += [Item(path.relative_to(source).as_posix(), path) for path in scenes]
        below[:] = [path.name for path in paths if path not in scenes]
    if not items:
        raise UserError(f"{source}: no RGB-D scenes in it; expected folders as doc/sides/scene3d.md shows them")
    return items


def frames(folder: Path) -> list[Frame]:
    """The frames of a scene that have a finite pose, in order. UserError: none, or a pose missing or not 4x4."""
    kind = layout(folder)
    if kind is None:
        raise UserError(f"{folder}: no RGB-D frames; expected a scene as doc/sides/scene3d.md shows it")
    colors = [f for pattern in kind.colors for f in folder.glob(pattern) if not f.name.endswith(".depth.png")]
    colors.sort(key=lambda f: (len(f.stem), f.stem))  # so that 9 comes before 10
    found = []
    for number, color in enumerate(colors):
        pose = _matrix(folder / kind.pose.format(color.stem), (16,), "a 4x4 pose")
        # ScanNet writes infinities where tracking was lost.
        if np.isfinite(pose).all():
            found.append(Frame(number, color, folder / kind.depth.format(color.stem), pose))
    if not found:
        raise UserError(f"{folder}: none of its {len(colors)} frames has a finite pose; leave this scene out")
    return found


def evenly(n: int, count: int) -> np.ndarray:
    """int64[count], which of n frames to look at: every (n // count)-th; fewer than `count` begin again."""
    return np.arange(count) * (n // count) if n >= count else np.arange(count) % n


def lens(folder: Path, frame: Frame) -> Lens:
    """A view's own intrinsics, else those of the depth camera, else of the colour camera. UserError: none."""
    found = own_lens(frame) or next(iter(shared_lenses(folder)), None)
    if found is None:
        raise UserError(
            f"{folder}: no intrinsics; expected depth_intrinsic.txt or intrinsic.txt, as its layout has them"
        )
    return found


def own_lens(frame: Frame) -> Lens | None:
    """Intrinsics of this view alone, if it has them. UserError: not such a matrix."""
    path = frame.color.with_name(OWN_INTRINSIC.format(frame.color.stem))
    return _lens(path, False) if path.is_file() else None


def shared_lenses(folder: Path) -> list[Lens]:
    """Intrinsics for all views: of the depth camera, then of the colour camera. UserError: not such a matrix."""
    kind = layout(folder)
    assert kind is not None
    files = {folder / kind.depth_intrinsic: True, folder / kind.intrinsic: False}
    return [_lens(path, of_depth) for path, of_depth in files.items() if path.is_file()]


def _lens(path: Path, of_depth: bool) -> Lens:
    matrix = _matrix(path, (9, 16), "3x3 or 4x4 intrinsics")
    if not np.isfinite(matrix).all() or min(matrix[0, 0], matrix[1, 1]) <= 0:
        raise UserError(
            f"{path}: focal lengths {matrix[0, 0]:g} and {matrix[1, 1]:g}, expected positive ones in pixels"
        )
    return Lens(path, matrix, of_depth)


def depth_scale(folder: Path) -> float:
    """Units in a metre, by scene.json. UserError: not a positive number."""
    scale = _settings(folder).get("depth_scale", DEPTH_SCALE)
    if not isinstance(scale, (int, float)) or not 0 < scale < np.inf:
        raise UserError(f"{folder / SETTINGS}: depth_scale {scale!r}; expected the units in a metre, such as 1000")
    return float(scale)


def axis_align(folder: Path) -> np.ndarray | None:
    """float64[4,4] by scene.json or ScanNet's <scene>.txt; identity where they state none; None: no such file."""
    settings, meta = _settings(folder), folder / f"{folder.resolve().name}.txt"
    if "axis_align" in settings:
        return _square(settings["axis_align"], folder / SETTINGS)
    if meta.is_file():
        stated = re.search(r"^\s*axisAlignment\s*=(.*)$", meta.read_text(), re.M)
        return _square(stated[1].split(), meta) if stated else np.eye(4)
    kind = layout(folder)
    return None if kind and kind.scannet else np.eye(4)


def read_alignments(path: Path) -> dict[str, np.ndarray]:
    """float64[4,4] of each scene, by its last name, from EmbodiedScan's infos. UserError: another file."""
    infos = _json(path)
    return {
        name.rsplit("/", 1)[-1]: _square(info["axis_align_matrix"], path)
        for name, info in infos.items()
        if isinstance(info, dict) and "axis_align_matrix" in info
    }


def read_color(path: Path) -> Image.Image:
    """An RGB picture. UserError: missing or damaged."""
    return _picture(path, "colour picture").convert("RGB")


def read_depth(path: Path) -> Image.Image:
    """A 16-bit grey picture. UserError: missing, damaged, or of another kind."""
    image = _picture(path, "depth picture")
    if image.mode != "I;16":
        raise UserError(f"{path}: a picture of kind '{image.mode}', expected depth as 16-bit grey PNG; export it again")
    return image


def _picture(path: Path, what: str) -> Image.Image:
    if not path.is_file():
        raise UserError(f"{path}: no such file; each frame needs a {what}")
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (OSError, SyntaxError, ValueError) as error:  # a broken PNG is a SyntaxError
        raise UserError(f"{path}: not a readable {what}: {error}; copy it again") from error


def _matrix(path: Path, sizes: Sequence[int], what: str) -> np.ndarray:
    """float64[4,4] of a text file."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected {what}")
    try:
        numbers = [float(word) for word in path.read_text().split()]
    except ValueError as error:
        raise UserError(f"{path}: not numbers: {error}; expected {what}") from error
    if len(numbers) not in sizes:
        raise UserError(f"{path}: holds {len(numbers)} numbers, expected {what}")
    side = int(len(numbers) ** 0.5)
    matrix = np.eye(4)
    matrix[:side, :side] = np.reshape(numbers, (side, side))
    if np.isfinite(matrix).all() and not np.allclose(matrix[3], (0, 0, 0, 1), atol=1e-3):
        raise UserError(
            f"{path}: last row {matrix[3].tolist()}, expected 0 0 0 1; the matrix may have to be transposed"
        )
    return matrix


def _square(values: Any, path: Path) -> np.ndarray:
    try:
        matrix = np.array(values, dtype=np.float64).reshape(4, 4)
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: its axis alignment is not 4x4 numbers; download or export it again") from error
    if not np.isfinite(matrix).all():
        raise UserError(f"{path}: its axis alignment is not finite; download or export it again")
    return matrix


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / SETTINGS
    settings = _json(path) if path.is_file() else {}
    unknown = sorted(settings.keys() - SETTINGS_KEYS)
    if unknown:
        raise UserError(f"{path}: unknown key '{unknown[0]}'; known: {', '.join(sorted(SETTINGS_KEYS))}")
    return settings


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}; write it again") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds a {type(found).__name__}, expected one JSON object")
    return found
