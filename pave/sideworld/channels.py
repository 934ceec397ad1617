"""What further side-channels show of the small world: flashes between the key frames, hidden sides, distances.

Each is drawn apart from all else, so that nothing else tells it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pave.sideworld.scene import COLORS, FPS, FRAMES, SIZE, Flash, Scene, render, stream

CHANNELS = ("audio", "dense", "exo", "depth")
KEY_FRAMES: list[int] = np.linspace(0, FRAMES - 1, 16).astype(int).tolist()
"""What a base that looks at 16 frames sees of a clip."""
NEAR, FAR = 1.25, 2.75
"""Metres from the camera."""
FLICKER = 0.8
"""Seconds from the start of a jump; as long as a sound."""
VIEWS: list[int] = np.linspace(0, FRAMES - 1, 4).astype(int).tolist()
"""Frames of which there is depth."""
INTRINSICS = np.array([[SIZE, 0, SIZE / 2], [0, SIZE, SIZE / 2], [0, 0, 1]])
POSE = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 1.2], [0, 0, 0, 1]])
"""Camera to world, metres: 1.2 m above the ground, looking along y. It stays, or pictures would tell distances."""


def with_channels(scene: Scene, channels: Sequence[str]) -> Scene:
    """The same scene with the facts that these of CHANNELS show; its sound and its key frames stay as they are."""
    return replace(
        scene,
        channels=tuple(channel for channel in CHANNELS if channel in channels),
        flashes=_flashes(scene) if "dense" in channels else (),
        backs=_two_colors(scene, "backs") if "exo" in channels else (),
        metres=_metres(scene) if "depth" in channels else (),
    )


def behind(scene: Scene) -> np.ndarray:
    """What a camera behind the things sees, uint8[64,64,64,3]: left is right, and each thing shows its other side."""
    left, right = (replace(thing, color=back) for thing, back in zip(scene.things, scene.backs))
    return np.ascontiguousarray(render(replace(scene, things=(left, right), flashes=()))[:, :, ::-1])


def depth(scene: Scene, chosen: Sequence[int]) -> np.ndarray:
    """Metres from the camera for each pixel of the chosen frames, float[T,64,64]: a thing is on a wall of its own."""
    return np.broadcast_to(np.repeat(scene.metres, SIZE // 2), (len(chosen), SIZE, SIZE))


def _two_colors(scene: Scene, content: str) -> tuple[str, str]:
    first, second = stream(scene.seed, content).permutation(list(COLORS))[:2]
    return str(first), str(second)


def _flashes(scene: Scene) -> tuple[Flash, Flash]:
    left, right = (
        Flash(color, tuple(i for i in range(FRAMES) if 0 <= i / FPS - thing.jump <= FLICKER and i not in KEY_FRAMES))
        for thing, color in zip(scene.things, _two_colors(scene, "flashes"))
    )
    return left, right


def _metres(scene: Scene) -> tuple[float, float]:
    left, right = stream(scene.seed, "metres").permutation([NEAR, FAR])
    return float(left), float(right)
