"""Further side-channels of the small world: flashes between the key frames, hidden sides, distances.

Each has a random stream of its own, so that no other side-channel and no key frame gives it away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pave.sideworld.scene import COLORS, FPS, FRAMES, SIZE, Flash, Scene, random_stream, render

CHANNELS = ("audio", "dense", "exo", "depth")
KEY_FRAMES: list[int] = np.linspace(0, FRAMES - 1, 16).astype(int).tolist()
"""The frames that a base with 16 frames reads of a clip."""
NEAR, FAR = 1.25, 2.75
"""Metres from the camera."""
FLICKER_SECONDS = 0.8
"""Seconds from the start of a jump; as long as a sound."""
DEPTH_FRAMES: list[int] = np.linspace(0, FRAMES - 1, 4).astype(int).tolist()
"""Frames with a depth image."""
INTRINSICS = np.array([[SIZE, 0, SIZE / 2], [0, SIZE, SIZE / 2], [0, 0, 1]])
POSE = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 1.2], [0, 0, 0, 1]])
"""Camera to world, metres: 1.2 m above the ground, looking along y. It stays, or images would give distances away."""


def with_channels(scene: Scene, channels: Sequence[str]) -> Scene:
    """Add the facts that these of CHANNELS show; sound and key frames of the scene stay the same."""
    return replace(
        scene,
        channels=tuple(channel for channel in CHANNELS if channel in channels),
        flashes=_flashes(scene) if "dense" in channels else (),
        backs=_two_colors(scene, "backs") if "exo" in channels else (),
        metres=_metres(scene) if "depth" in channels else (),
    )


def render_behind(scene: Scene) -> np.ndarray:
    """Render the view from behind, uint8[64,64,64,3]: left is right, and each thing shows its other side."""
    left, right = (replace(thing, color=back) for thing, back in zip(scene.things, scene.backs))
    mirrored = render(replace(scene, things=(left, right), flashes=()))
    return np.ascontiguousarray(mirrored[:, :, ::-1])


def depth_maps(scene: Scene, num_frames: int) -> np.ndarray:
    """Metres from the camera to each pixel, float[T,64,64]: each half of the image is a wall with one thing."""
    return np.broadcast_to(np.repeat(scene.metres, SIZE // 2), (num_frames, SIZE, SIZE))


def _two_colors(scene: Scene, content: str) -> tuple[str, str]:
    first, second = random_stream(scene.seed, content).permutation(list(COLORS))[:2]
    return str(first), str(second)


def _flashes(scene: Scene) -> tuple[Flash, Flash]:
    flashes = []
    for thing, color in zip(scene.things, _two_colors(scene, "flashes")):
        during_jump = [i for i in range(FRAMES) if 0 <= i / FPS - thing.jump <= FLICKER_SECONDS]
        flashes.append(Flash(color, tuple(i for i in during_jump if i not in KEY_FRAMES)))
    return flashes[0], flashes[1]


def _metres(scene: Scene) -> tuple[float, float]:
    left, right = random_stream(scene.seed, "metres").permutation([NEAR, FAR])
    return float(left), float(right)
