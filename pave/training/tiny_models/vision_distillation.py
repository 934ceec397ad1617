"""Lessons on seeing for the towers of the other bases: what the shipped base sees, and what a question is about."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from pave.models.bases.llava_onevision import LlavaOnevision
from pave.sideworld import scene as world
from pave.tasks import sideworld as task
from pave.training.tiny_models.architectures import ROWS, Small
from pave.training.tiny_models.optimisation import COLORS, FIRST_SEED, SHAPES, SOUNDS, fit
from pave.training.tiny_models.vision_pretraining import NO_CAPTION, Reader, caption, grainy

AT_ONCE = 8
"""Neighbouring key frames of a scene in a lesson on seeing."""


def key_frames(frames: int) -> np.ndarray:
    """int[frames], evenly spaced, as clips are read."""
    return np.linspace(0, world.FRAMES - 1, frames).astype(int)


class Glimpses(IterableDataset[tuple[Tensor, ...]]):
    """Endless neighbouring frames of scenes: pixels as the base and as the teacher takes them, and what is in them.

    Facts, heights float[t,2] and captions int[t,2] as in `see.Glimpses`, for rows of `together` frames.
    """

    def __init__(self, small: Small, teacher: LlavaOnevision, seed: int) -> None:
        self.base, self.teacher, self.frames, self.seed = small.base, teacher, small.frames, seed
        self.together = small.frames // ROWS

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        keys = key_frames(self.frames)
        for index in itertools.count(FIRST_SEED + (self.seed << 32)):
            scene, rng = world.scene(index), np.random.default_rng(index)
            start = rng.integers(0, self.frames - AT_ONCE, endpoint=True)
            chosen = keys[start : start + AT_ONCE]
            things = scene.things
            facts = [
                [SHAPES.index(thing.shape) for thing in things],
                [COLORS.index(thing.color) for thing in things],
                [int(thing is scene.bigger) for thing in things],
            ]
            heights = np.stack([world.centre(thing, chosen / world.FPS)[1] / world.SIZE for thing in things], 1)
            rows = AT_ONCE // self.together
            captions = np.where(rng.random(rows) < 0.5, rng.integers(0, len(SOUNDS), rows), NO_CAPTION)
            strength = rng.uniform(0.4, 1.0)
            frames = caption(world.render(scene, list(chosen)), captions.repeat(self.together), strength)
            frames = grainy(frames, rng)
            yield (
                self.base.preprocess(frames),
                self.teacher.preprocess(frames),
                torch.tensor(facts),
                torch.from_numpy(heights.reshape(rows, self.together, 2).mean(1)).float(),
                torch.from_numpy(captions)[:, None].expand(-1, 2),
            )


def see(small: Small, teacher: LlavaOnevision, steps: int, seed: int, batch: int = 16) -> None:
    """Train tower and projector to say what is in each quarter of the picture, in the teacher's words."""
    reader = Reader(small.base.embed_dim)
    eyes = nn.ModuleList([small.base.vision_tower, *_projector(small.base), reader])
    small.base.eval()
    spread = None

    def tell(lesson: Sequence[Tensor]) -> Tensor:
        nonlocal spread
        pixels, pictures, *facts = lesson
        with torch.no_grad():
            wanted = teacher.encode(pictures).embeds.float()
            wanted = wanted.unflatten(1, (pixels.shape[1], -1)).mean(2)
            spread = wanted.flatten(0, -2).std(0) if spread is None else spread
        seen = small.quarters(encode(small.base, pixels).float())
        return reader(seen, *facts) + 3 * F.mse_loss(seen / spread, wanted / spread)

    lessons = DataLoader(Glimpses(small, teacher, seed), batch)
    fit(eyes, map(tell, lessons), steps, rate=2e-3)


class Sought(IterableDataset[tuple[Tensor, Tensor, Tensor]]):
    """Endless scenes with a question: pixels float[t,...], the question's guide int[L], wanted patches bool[T,P].

    Wanted are those that show the thing asked about, or either thing where the sound is asked about.
    """

    def __init__(self, base: Any, frames: int, seed: int) -> None:
        self.base, self.frames, self.seed = base, frames, seed

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        edge, keys = self.base.edge, key_frames(self.frames)
        middles = (np.arange(edge) + 0.5) * world.SIZE / edge
        for index in itertools.count(FIRST_SEED + (self.seed << 32)):
            scene, rng = world.scene(index), np.random.default_rng(index)
            question = task.ask(scene)[index % len(task.KINDS)]
            about = {
                "bigger_color": [scene.bigger],
                "shape_of_color": [scene.things[scene.asked]],
                "left_shape": [scene.things[0]],
            }.get(question.group, scene.things)
            shown = np.zeros((self.frames, edge, edge), bool)
            for thing in about:
                x, y = (at[:, None] for at in world.centre(thing, keys / world.FPS))
                near = [np.abs(middles - at) < thing.radius + 2 for at in (y, x)]
                shown |= near[0][:, :, None] & near[1][:, None]
            pixels = self.base.preprocess(grainy(world.render(scene, list(keys)), rng))
            guide = self.base.reader(task.prompt(question), padding="max_length", max_length=16).input_ids
            yield pixels, torch.tensor(guide), torch.from_numpy(shown).flatten(1)


def heed(small: Small, steps: int, seed: int, batch: int = 8) -> None:
    """Train what compares patches with the question to find those that it is about; both towers stay as they are."""
    projector = small.base.multi_modal_projector
    learns = [projector.clip_visual_ln, projector.clip_visual_projection, projector.clip_text_projection]

    def miss(lesson: Sequence[Tensor]) -> Tensor:
        pixels, guides, shown = lesson
        with torch.no_grad():
            tokens = small.base.vision_tower(pixels.unflatten(2, (2, 3)).flatten(1, 2))
        weights = projector.weights(tokens, projector.prompt(guides))
        return -(weights * shown).flatten(1).sum(1).clamp(min=1e-6).log().mean()

    lessons = DataLoader(Sought(small.base, small.frames, seed), batch)
    fit(nn.ModuleList(learns), map(miss, lessons), steps, rate=2e-3)


def _projector(base: Any) -> list[nn.Module]:
    return [base.multi_modal_projector] if hasattr(base, "multi_modal_projector") else []


def encode(base: Any, pixels: Tensor, question: str = "") -> Tensor:
    """Visual tokens float[B,t,S,D], for a base that looks at the question too those for this one."""
    if not getattr(base, "by_question", False):
        return base.encode(pixels).embeds
    guide = torch.tensor([base.reader(question).input_ids]).expand(len(pixels), -1)
    return base.encode(pixels, guide).embeds
