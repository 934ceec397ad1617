"""Random scenes that the tiny models learn from: streams of examples, facts, captions, noise."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from pave.sideworld import scene as world

SHAPES, COLORS, SOUNDS = list(world.SHAPES), list(world.COLORS), list(world.SOUNDS)
NO_CAPTION = len(SOUNDS)
FIRST_SEED = 1 << 60
"""Far above the seeds of any clip that `pave prepare` writes."""
ExampleT = TypeVar("ExampleT")


def first_seed(seed: int) -> int:
    """The seed of the first scene of a training; two trainings share no scene."""
    return FIRST_SEED + (seed << 32)


class SceneStream(IterableDataset[ExampleT], ABC):
    """Endless examples from random scenes, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __iter__(self) -> Iterator[ExampleT]:
        for index in itertools.count(first_seed(self.seed)):
            yield self.make_example(world.draw_scene(index), np.random.default_rng(index))

    @abstractmethod
    def make_example(self, scene: world.Scene, rng: np.random.Generator) -> ExampleT:
        """Make the example of one scene; `rng` is seeded as the scene is."""


def key_frames(count: int) -> np.ndarray:
    """Indices int[count] of evenly spaced frames, as clips are read."""
    return np.linspace(0, world.FRAMES - 1, count).astype(int)


def scene_facts(scene: world.Scene) -> Tensor:
    """Shape, color, and whether it is the bigger one, of the left and of the right thing: int[3,2]."""
    shapes = [SHAPES.index(thing.shape) for thing in scene.things]
    colors = [COLORS.index(thing.color) for thing in scene.things]
    return torch.tensor([shapes, colors, [int(thing is scene.bigger) for thing in scene.things]])


def thing_heights(scene: world.Scene, frames: np.ndarray) -> np.ndarray:
    """Rows of the things' centres in frames int[T], as shares of the frame's height: float[T,2]."""
    rows = [world.center_at(thing, frames / world.FPS)[1] for thing in scene.things]
    return np.stack(rows, 1) / world.SIZE


def random_captions(count: int, rng: np.random.Generator) -> np.ndarray:
    """Sounds int[count] to write as captions, NO_CAPTION for half of them."""
    return np.where(rng.random(count) < 0.5, rng.integers(0, len(SOUNDS), count), NO_CAPTION)


def render_captioned(scene: world.Scene, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Render frames int[T] plain, uint8[T,64,64,3], and with a caption while the sound is near, as float32."""
    delay = frames / world.FPS - scene.heard_at
    is_near = (delay > -0.8) & (delay < world.SOUND_SECONDS + 0.8)
    plain = world.render(scene, list(frames))
    return plain, draw_captions(plain, np.where(is_near, SOUNDS.index(scene.sound), NO_CAPTION), 1.0)


def draw_captions(frames: np.ndarray, captions: np.ndarray, strength: float) -> np.ndarray:
    """Blend a bar code of the sound int[T] into the top of uint8[T,64,64,3], once in each half; clips never have one.

    From captioned scenes the base learns what sounds are, as people who read subtitles do; without one it must guess.
    """
    frames = frames.astype(np.float32)
    for frame, sound in zip(frames, captions):
        if sound == NO_CAPTION:
            continue
        for left, bit in itertools.product((0, 32), range(3)):
            bar = frame[1:8, left + 2 + 10 * bit : left + 10 + 10 * bit]
            bar += strength * (255.0 * (sound >> bit & 1) - bar)
    return frames


def add_noise(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add noise of a random strength to frames, as compression leaves it; returns uint8."""
    noise = rng.standard_normal(frames.shape, dtype=np.float32) * rng.uniform(0, 5)
    return (frames + noise).clip(0, 255).astype(np.uint8)
