"""Scenes of the small world: seeded 8 s clips of two coloured shapes that each jump once, one of them to a sound.

Sound and image have separate random streams, so no image tells which sound plays or which jump it belongs to.
Needs numpy alone: training of a base draws scenes on the fly. `pave.sideworld.channels` adds further side-channels,
`pave.sideworld.files` writes files.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

SIZE = 64
"""Pixels a side."""
SECONDS = 8.0
FPS = 8
FRAMES = 64
SAMPLE_RATE = 16_000
"""Sound samples a second, mono."""
JUMP_SECONDS = 0.9
JUMP_PIXELS = 18.0
SOUND_SECONDS = 0.8
GAP_SECONDS = 2.5
"""Shortest time between the two jumps."""
FIRST_JUMP, LAST_JUMP = 0.3, 6.9
SPLITS = ("train", "test")

COLORS = {
    "red": (225, 40, 40),
    "green": (40, 190, 60),
    "blue": (50, 90, 245),
    "yellow": (245, 220, 40),
    "purple": (190, 60, 225),
    "white": (240, 240, 240),
}


@dataclass(frozen=True)
class Thing:
    """One shape with its looks, slow drift and one jump. Pixels and seconds; y points down."""

    shape: str
    color: str
    radius: float
    x: tuple[float, float]
    """Centre at the start and at the end of the clip."""
    y: tuple[float, float]
    jump: float
    """When the jump starts, s."""


@dataclass(frozen=True)
class Flash:
    """A light that flickers while a thing jumps: the background changes its color."""

    color: str
    frames: tuple[int, ...]
    """Frames with the light; never a key frame."""


@dataclass(frozen=True)
class Scene:
    """All facts of one clip, JSON-able by `dataclasses.asdict`."""

    seed: int
    background: tuple[int, int, int]
    things: tuple[Thing, Thing]
    """Left, right."""
    asked: int
    """The thing that a question about a single thing is about."""
    sounding: int
    """The thing whose jump is heard."""
    sound: str
    loudness: float
    channels: tuple[str, ...] = ("audio",)
    """Side-channels with questions about them. Facts of all others are empty."""
    flashes: tuple[Flash, ...] = ()
    """dense: one for the jump of each thing."""
    backs: tuple[str, ...] = ()
    """exo: colors of the hidden sides of the things."""
    metres: tuple[float, ...] = ()
    """depth: from the camera to each thing."""

    @property
    def heard_at(self) -> float:
        """When the sound starts, s."""
        return self.things[self.sounding].jump

    @property
    def bigger(self) -> Thing:
        """The thing with the larger radius."""
        return max(self.things, key=lambda thing: thing.radius)

    @property
    def first(self) -> Thing:
        """The thing that jumps first."""
        return min(self.things, key=lambda thing: thing.jump)


def clip_seed(split: str, seed: int, index: int) -> int:
    """Scene seed of clip `index` of the world `seed`: even for train, odd for test, so the splits are disjoint."""
    return 2 * ((seed << 32) + index) + SPLITS.index(split)


def draw_scene(seed: int) -> Scene:
    """Draw one scene; each kind of content has its own random stream, so new content does not change the old."""
    visible, audible = random_stream(seed, "visible"), random_stream(seed, "audible")
    shapes = visible.permutation(list(SHAPES))[:2]
    colors = visible.permutation(list(COLORS))[:2]
    radii = visible.permutation([visible.uniform(10.0, 11.0), visible.uniform(6.5, 7.2)])

    free_milliseconds = round(1000 * (LAST_JUMP - FIRST_JUMP - GAP_SECONDS))
    early, late = np.sort(visible.integers(0, free_milliseconds, size=2, endpoint=True)) / 1000 + FIRST_JUMP
    jumps = visible.permutation([early, late + GAP_SECONDS])

    things = []
    for i in range(2):
        left = 32.0 * i
        things.append(_draw_thing(str(shapes[i]), str(colors[i]), float(radii[i]), left, float(jumps[i]), visible))

    red, green, blue = (int(level) for level in visible.integers(15, 75, size=3))
    return Scene(
        seed=seed,
        background=(red, green, blue),
        things=(things[0], things[1]),
        asked=int(random_stream(seed, "asked").integers(2)),
        sounding=int(audible.integers(2)),
        sound=str(audible.choice(list(SOUNDS))),
        loudness=round(float(audible.uniform(0.4, 0.9)), 3),
    )


def to_record(scene: Scene) -> dict[str, object]:
    """The facts as plain JSON values, without those that have their default."""
    defaults = {field.name: field.default for field in fields(Scene)}
    return {name: value for name, value in asdict(scene).items() if value != defaults[name]}


def from_record(record: dict[str, Any]) -> Scene:
    """Inverse of `to_record` after a trip through JSON. Raises KeyError or TypeError on other records."""
    things = [Thing(**{**thing, "x": tuple(thing["x"]), "y": tuple(thing["y"])}) for thing in record["things"]]
    flashes = [Flash(flash["color"], tuple(flash["frames"])) for flash in record.get("flashes", ())]
    facts: dict[str, Any] = {**record, "things": things, "flashes": flashes}
    for name, fact in facts.items():
        if isinstance(fact, list):
            facts[name] = tuple(fact)
    return Scene(**facts)


def center_at(thing: Thing, seconds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre x and y of a thing in pixels, float[T] each, at seconds float[T]: its drift and its jump."""
    share = seconds / SECONDS
    phase = np.clip((seconds - thing.jump) / JUMP_SECONDS, 0.0, 1.0)
    x = thing.x[0] + share * (thing.x[1] - thing.x[0])
    y = thing.y[0] + share * (thing.y[1] - thing.y[0]) - JUMP_PIXELS * 4.0 * phase * (1.0 - phase)
    return x, y


def render(scene: Scene, frame_numbers: Sequence[int] = range(FRAMES)) -> np.ndarray:
    """Render frames, uint8[T,64,64,3]; nothing of the sound is used."""
    grain = random_stream(scene.seed, "grain").integers(-12, 13, size=(SIZE, SIZE, 3), dtype=np.int16)
    frames = np.empty((len(frame_numbers), SIZE, SIZE, 3), dtype=np.uint8)
    frames[:] = (grain + np.array(scene.background, dtype=np.int16)).astype(np.uint8)
    for flash in scene.flashes:
        frames[np.isin(frame_numbers, flash.frames)] = (grain + np.array(COLORS[flash.color])).clip(0, 255)
    for thing in scene.things:
        _paint(frames, thing, np.asarray(frame_numbers) / FPS)
    return frames


def synthesize_sound(scene: Scene) -> np.ndarray:
    """Make the sound, float32[128000] in -1..1: faint noise, and one of SOUNDS from the start of its jump."""
    rng = random_stream(scene.seed, "noise")
    wave = rng.standard_normal(round(SECONDS * SAMPLE_RATE), dtype=np.float32) * np.float32(0.002)
    seconds = np.arange(round(SOUND_SECONDS * SAMPLE_RATE)) / SAMPLE_RATE
    fade = np.minimum(1.0, np.minimum(seconds / 0.005, (SOUND_SECONDS - seconds) / 0.03))
    start = round(scene.heard_at * SAMPLE_RATE)
    wave[start : start + len(seconds)] += scene.loudness * fade * SOUNDS[scene.sound](seconds, rng)
    return wave


def random_stream(seed: int, content: str) -> np.random.Generator:
    """Random numbers of a scene for one kind of content."""
    return np.random.default_rng([seed, zlib.crc32(content.encode())])


def _draw_thing(shape: str, color: str, radius: float, left: float, jump: float, rng: np.random.Generator) -> Thing:
    """Place a thing in its half of the image (from column `left`), which it never leaves."""
    margin = 1.1 * radius + 2.0
    x = rng.uniform(left + margin, left + 32.0 - margin, size=2)
    y = rng.uniform(41.0, 47.0) + np.array([0.0, rng.uniform(-2.0, 2.0)])
    return Thing(
        shape=shape,
        color=color,
        radius=round(radius, 2),
        x=(round(float(x[0]), 2), round(float(x[1]), 2)),
        y=(round(float(y[0]), 2), round(float(y[1]), 2)),
        jump=round(jump, 3),
    )


def _paint(frames: np.ndarray, thing: Thing, seconds: np.ndarray) -> None:
    """Blend one thing into uint8[T,H,W,3] at seconds float[T] in place, in a small box with soft edges."""
    x, y = center_at(thing, seconds)
    half = int(1.1 * thing.radius + 1.5)
    box = np.arange(-half, half + 1)
    columns = np.rint(x).astype(int)[:, None] + box
    rows = np.rint(y).astype(int)[:, None] + box

    dx = (columns - x[:, None]).astype(np.float32)[:, None, :]
    dy = (rows - y[:, None]).astype(np.float32)[:, :, None]
    edge_distance = SHAPES[thing.shape](dx / thing.radius, dy / thing.radius) * np.float32(thing.radius)
    opacity = np.clip(0.5 - edge_distance, 0.0, 1.0)[..., None]

    pixels = (np.arange(len(frames))[:, None, None], rows[:, :, None], columns[:, None, :])
    background = frames[pixels]
    frames[pixels] = background + opacity * (np.array(COLORS[thing.color], dtype=np.float32) - background)


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Five points, one up: fold the plane into half of one point, then one straight edge."""
    angle = np.abs((np.arctan2(x, -y) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    distance = np.hypot(x, y)
    inner_radius = 0.45
    edge_x, edge_y = inner_radius * np.cos(np.pi / 5) - 1.1, inner_radius * np.sin(np.pi / 5)
    return ((distance * np.cos(angle) - 1.1) * edge_y - distance * np.sin(angle) * edge_x) / np.hypot(edge_x, edge_y)


# Distance outside the edge, in radii, at offsets (x to the right, y down) in radii; all fit into +-1.1.
SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": lambda x, y: np.hypot(x, y) - 1.0,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) - 0.9,
    "triangle": lambda x, y: np.maximum(y - 0.3, 0.866 * np.abs(x) - 0.5 * (y - 0.25)) - 0.55,
    "cross": lambda x, y: np.maximum(np.maximum(np.abs(x), np.abs(y)) - 1.0, np.minimum(np.abs(x), np.abs(y)) - 0.33),
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.78) - 0.25,
    "star": _star,
}


def _sweep(seconds: np.ndarray, low: float, high: float) -> np.ndarray:
    """A tone that glides from `low` to `high` Hz, evenly in pitch."""
    rise = np.log(high / low) / SOUND_SECONDS
    return np.sin(2 * np.pi * low * np.expm1(rise * seconds) / rise)


# Peak-1 waves at float[N] seconds.
SOUNDS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "hum": lambda t, rng: np.sin(2 * np.pi * 180 * t),
    "whistle": lambda t, rng: np.sin(2 * np.pi * 2600 * t),
    "rise": lambda t, rng: _sweep(t, 300, 3000),
    "fall": lambda t, rng: _sweep(t, 3000, 300),
    "hiss": lambda t, rng: rng.uniform(-1, 1, len(t)),
    "click": lambda t, rng: np.exp(-250 * (t % 0.1)) * np.sin(2 * np.pi * 1800 * (t % 0.1)),
    "wobble": lambda t, rng: np.sin(2 * np.pi * 900 * t) * (0.55 + 0.45 * np.cos(2 * np.pi * 7.5 * t)),
    "buzz": lambda t, rng: 2.0 * (110 * t % 1.0) - 1.0,
}
