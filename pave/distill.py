"""A tower that learns from a teacher: at visual tokens the LLM's hidden states come to resemble what the teacher sees.

As Video-Panda's first stages do. How the published class mixes layers was not to be seen; here a learnt mean of normed
layers and one linear map do it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pave.config import Config
from pave.encoders import languagebind_video
from pave.model import Pave
from pave.types import UserError

CHUNK = 4
"""Frames that the teacher sees together."""
LAYERS = 9
"""Of the LLM, in the published class too."""


class Lesson(nn.Module):
    """Hidden states of some layers float[B,L,D] at visual places -> the teacher's width, and how far they are off."""

    def __init__(self, depth: int, width: int, out: int) -> None:
        super().__init__()
        self.chosen = [math.ceil(depth * (i + 1) / LAYERS) for i in range(LAYERS)]
        """Evenly spaced, the last layer among them; 0 would be the embedding."""
        self.shares = nn.Parameter(torch.zeros(LAYERS))
        self.norm, self.map = nn.LayerNorm(width), nn.Linear(width, out)

    def forward(self, hidden: Sequence[Tensor]) -> Tensor:
        """The hidden states of all layers -> float[B,L,C]"""
        mixed = [share * self.norm(hidden[i]) for share, i in zip(self.shares.softmax(0), self.chosen)]
        return self.map(torch.stack(mixed).sum(0))

    def distance(self, pupil: Tensor, places: Tensor, targets: Sequence[Tensor]) -> Tensor:
        """1 - cosine, mean over cells: float[B,L,C], bool[B,L] where visual tokens stand, float[T,h,w,C] a video.

        Class and split tokens have no teacher. Raises UserError where the end of a video was cut.
        """
        off = []
        for row, where, target in zip(pupil, places, targets):
            frames, high, wide, _ = target.shape
            if where.sum() != frames * (1 + high * (wide + 1)):
                raise UserError("teacher: visual tokens were cut; set a larger data.max_length")
            cells = row[where].unflatten(0, (frames, -1))[:, 1:].unflatten(1, (high, wide + 1))[:, :, :-1]
            off.append(1 - F.cosine_similarity(cells.float(), target.float(), dim=-1).flatten())
        return torch.cat(off).mean()


class Teacher:
    """A frozen LanguageBind tower."""

    def __init__(self, model: Pave, config: Config) -> None:
        self.tower = languagebind_video.load(Path(config.teacher)).requires_grad_(False)
        self.cell: Any = model.base.cell
        found, expected = len(self.tower.pre_layrnorm.weight), model.base.query_dim
        if found != expected:
            raise UserError(f"{config.teacher}: is {found} wide, the base's tower {expected}; give another teacher")

    def __call__(self, model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """What Pave.forward gives, its loss that of answers and of seeing like the teacher."""
        return model(**inputs, targets=self.see(inputs["pixels"], inputs["ids"].device))

    @torch.no_grad()
    def see(self, pixels: Tensor | Sequence[Tensor], device: torch.device) -> list[Tensor]:
        """Videos float[T,3,h,w], CLIP's normalisation -> what it sees in each cell: float[T,h',w',C] of each.

        The whole picture at the tower's size, whatever its shape.
        """
        self.tower.to(device)
        size, seen = self.tower.image_size, []
        for video in pixels:
            frames = F.interpolate(video.to(device), size=(size, size), mode="bilinear", antialias=True)
            tokens = self.tower(frames.unflatten(0, (-1, CHUNK)))[:, :, 1:].flatten(0, 1)
            edge = math.isqrt(tokens.shape[1])
            grid = tokens.transpose(1, 2).unflatten(2, (edge, edge))
            grid = F.adaptive_avg_pool2d(grid, (video.shape[-2] // self.cell, video.shape[-1] // self.cell))
            seen.append(grid.permute(0, 2, 3, 1))
        return seen


def prepare(model: Pave, config: Config) -> None:
    """Give the base its lesson, where the config names a teacher. Raises UserError for a base without such stages."""
    if not config.teacher:
        return
    base = model.base
    if not hasattr(base, "cell"):
        raise UserError(f"teacher: {config.base.name} has no such stage, video_panda has; leave it empty")
    device = next(base.parameters()).device
    base.lesson = Lesson(base.hf.config.num_hidden_layers, base.embed_dim, base.query_dim).to(device)
