"""First stage of the tiny base: the vision tower learns to tell what is in a frame."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from pave.models.bases.llava_onevision import Base as LlavaOnevision
from pave.sideworld import scene as world
from pave.training.tiny_models.optimisation import optimise
from pave.training.tiny_models.scenes import (
    COLORS,
    SHAPES,
    SOUNDS,
    SceneStream,
    add_noise,
    draw_captions,
    random_captions,
    scene_facts,
    thing_heights,
)


class FrameStream(SceneStream[tuple[Tensor, Tensor, Tensor, Tensor]]):
    """Endless frames: pixels float[4,3,64,64], facts int[3,2], heights float[4,2], captions int[4,2] of each scene."""

    def __init__(self, base: LlavaOnevision, seed: int) -> None:
        super().__init__(seed)
        self.base = base

    def make_example(self, scene: world.Scene, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Render four random frames with random captions."""
        frames = np.sort(rng.choice(world.FRAMES, 4, replace=False))
        captions = random_captions(4, rng)
        images = draw_captions(world.render(scene, list(frames)), captions, rng.uniform(0.4, 1.0))
        pixels = self.base.preprocess(add_noise(images, rng))
        heights = torch.from_numpy(thing_heights(scene, frames)).float()
        return pixels, scene_facts(scene), heights, both_halves(captions)


def both_halves(captions: np.ndarray) -> Tensor:
    """Captions int[T] for both halves of each frame, int[T,2]."""
    return torch.from_numpy(captions)[:, None].expand(-1, 2)


class FactHead(nn.Module):
    """The loss of reading, from each token of a 2x2 frame, the thing in its half and the caption. Only for training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.facts = nn.ModuleList([nn.Linear(width, n) for n in (len(SHAPES), len(COLORS), 2)])
        self.height = nn.Linear(width, 1)
        self.caption = nn.Linear(width, len(SOUNDS) + 1)

    def forward(self, query: Tensor, facts: Tensor, heights: Tensor, captions: Tensor) -> Tensor:
        """query float[B,T,4,Q] (rows before columns), facts int[B,3,2], heights float[B,T,2], captions int[B,T,2]"""
        query = self.norm(query)

        # Facts of the left and right thing, for every frame and for the upper and lower row of tokens.
        token_facts = facts[:, :, None, None].expand(-1, -1, query.shape[1], 2, -1).flatten(3)
        losses = [
            F.cross_entropy(head(query).flatten(0, 2), token_facts[:, i].flatten()) for i, head in enumerate(self.facts)
        ]
        token_heights, token_captions = [x[:, :, None].expand(-1, -1, 2, -1).flatten(2) for x in (heights, captions)]
        losses.append(3 * F.mse_loss(self.height(query)[..., 0], token_heights))
        losses.append(F.cross_entropy(self.caption(query).flatten(0, 2), token_captions.flatten()))
        return torch.stack(losses).sum()


def train_vision(base: LlavaOnevision, steps: int, seed: int) -> None:
    """Train the tower to tell what is in a frame."""
    head = FactHead(base.query_dim)
    examples = DataLoader(FrameStream(base, seed), 128, num_workers=1)
    losses = (head(base.encode(pixels).query, *facts) for pixels, *facts in examples)
    optimise(nn.ModuleList([base.hf.model.vision_tower, head]), losses, steps, rate=2e-3)
