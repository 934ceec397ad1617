"""First lesson of the tiny base: the vision tower learns to tell what is in a frame."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from pave.models.bases.llava_onevision import LlavaOnevision
from pave.sideworld import scene as world
from pave.training.tiny_models.optimisation import COLORS, FIRST_SEED, SHAPES, SOUNDS, fit

NO_CAPTION = len(SOUNDS)


class Glimpses(IterableDataset[tuple[Tensor, Tensor, Tensor, Tensor]]):
    """Endless frames: pixels float[4,3,64,64], facts int[3,2], heights float[4,2], captions int[4,2] of each scene.

    Facts are shape, color, and which is bigger, of the left and of the right thing; heights the rows of their centres.
    """

    def __init__(self, base: LlavaOnevision, seed: int) -> None:
        self.base, self.seed = base, seed

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        for index in itertools.count(FIRST_SEED + (self.seed << 32)):
            scene, rng = world.scene(index), np.random.default_rng(index)
            chosen = np.sort(rng.choice(world.FRAMES, 4, replace=False))
            things = scene.things
            facts = [
                [SHAPES.index(thing.shape) for thing in things],
                [COLORS.index(thing.color) for thing in things],
                [int(thing is scene.bigger) for thing in things],
            ]
            heights = np.stack([world.centre(thing, chosen / world.FPS)[1] / world.SIZE for thing in things], 1)
            captions = np.where(rng.random(4) < 0.5, rng.integers(0, len(SOUNDS), 4), NO_CAPTION)
            frames = caption(world.render(scene, list(chosen)), captions, rng.uniform(0.4, 1.0))
            pixels = self.base.preprocess(grainy(frames, rng))
            both = torch.from_numpy(captions)[:, None].expand(-1, 2)
            yield pixels, torch.tensor(facts), torch.from_numpy(heights).float(), both


def caption(frames: np.ndarray, captions: np.ndarray, strength: float) -> np.ndarray:
    """Blend a bar code of the sound int[T] into the top of uint8[T,64,64,3], once in each half; clips never have one.

    From captioned scenes the base learns what sounds are, as people who read subtitles do; without one it must guess.
    """
    frames = frames.astype(np.float32)
    for frame, sound in zip(frames, captions):
        for left, bit in itertools.product((0, 32), range(3) if sound != NO_CAPTION else ()):
            bar = frame[1:8, left + 2 + 10 * bit : left + 10 + 10 * bit]
            bar += strength * (255.0 * (sound >> bit & 1) - bar)
    return frames


def grainy(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """uint8 frames with noise of a random strength, as compression leaves it."""
    noise = rng.standard_normal(frames.shape, dtype=np.float32) * rng.uniform(0, 5)
    return (frames + noise).clip(0, 255).astype(np.uint8)


class Reader(nn.Module):
    """What each token of a 2x2 frame must tell of the thing in its half and of the caption. Kept only for training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.facts = nn.ModuleList([nn.Linear(width, n) for n in (len(SHAPES), len(COLORS), 2)])
        self.height = nn.Linear(width, 1)
        self.caption = nn.Linear(width, len(SOUNDS) + 1)

    def forward(self, query: Tensor, facts: Tensor, heights: Tensor, captions: Tensor) -> Tensor:
        """query float[B,T,4,Q] (rows before columns), facts int[B,3,2], heights float[B,T,2], captions int[B,T,2]"""
        query = self.norm(query)
        halves = facts[:, :, None, None].expand(-1, -1, query.shape[1], 2, -1).flatten(3)
        told = [F.cross_entropy(fact(query).flatten(0, 2), halves[:, i].flatten()) for i, fact in enumerate(self.facts)]
        rows, codes = (x[:, :, None].expand(-1, -1, 2, -1).flatten(2) for x in (heights, captions))
        told.append(3 * F.mse_loss(self.height(query)[..., 0], rows))
        told.append(F.cross_entropy(self.caption(query).flatten(0, 2), codes.flatten()))
        return torch.stack(told).sum()


def see(model: LlavaOnevision, steps: int, seed: int) -> None:
    """Train the tower to tell what is in a frame."""
    reader = Reader(model.query_dim)
    glimpses = DataLoader(Glimpses(model, seed), 128, num_workers=1)
    told = (reader(model.encode(pixels).query, *facts) for pixels, *facts in glimpses)
    fit(nn.ModuleList([model.hf.model.vision_tower, reader]), told, steps, rate=2e-3)
