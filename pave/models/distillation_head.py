"""The head that maps hidden states of an LLM to a teacher's width, and measures how far apart they are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pave.types import UserError

LAYERS = 9
"""Layers of the LLM that are mixed, as in the published class."""


class DistillationHead(nn.Module):
    """A weighted mean of some layers' hidden states float[B,L,D], mapped to the teacher's width C."""

    def __init__(self, num_layers: int, width: int, teacher_width: int) -> None:
        super().__init__()
        self.layer_indices = [math.ceil(num_layers * (i + 1) / LAYERS) for i in range(LAYERS)]
        """Evenly spaced, the last layer among them; 0 would be the embedding."""
        self.shares = nn.Parameter(torch.zeros(LAYERS))
        self.norm, self.map = nn.LayerNorm(width), nn.Linear(width, teacher_width)

    def forward(self, hidden_states: Sequence[Tensor]) -> Tensor:
        """Map the hidden states of all layers, float[B,L,D] each -> float[B,L,C]."""
        weights = self.shares.softmax(0)
        mixed = [weight * self.norm(hidden_states[i]) for weight, i in zip(weights, self.layer_indices)]
        return self.map(torch.stack(mixed).sum(0))

    def distance(self, features: Tensor, is_video_token: Tensor, targets: Sequence[Tensor]) -> Tensor:
        """1 - cosine, mean over the cells of all videos: float[B,L,C], bool[B,L], targets float[T,h,w,C] a video.

        Class and split tokens have no teacher. Raises UserError where the end of a video was cut.
        """
        distances = []
        for row, is_visual, target in zip(features, is_video_token, targets):
            frames, height, width, _ = target.shape
            # A frame is one class token, and rows of cells that end in a split token.
            if is_visual.sum() != frames * (1 + height * (width + 1)):
                raise UserError("distill_from: visual tokens were cut; set a larger data.max_length")
            rows = row[is_visual].unflatten(0, (frames, -1))[:, 1:].unflatten(1, (height, width + 1))
            cells = rows[:, :, :-1]
            distances.append(1 - F.cosine_similarity(cells.float(), target.float(), dim=-1).flatten())
        return torch.cat(distances).mean()
