"""Hidden states of an LLM to the width of a teacher."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pave.types import UserError

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
