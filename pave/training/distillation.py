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
from pave.models.encoders import languagebind_video
from pave.models.patched_model import Pave
from pave.types import UserError

CHUNK = 4
"""Frames that the teacher sees together."""


class Teacher:
    """A frozen LanguageBind tower."""

    def __init__(self, model: Pave, config: Config) -> None:
        self.tower = languagebind_video.load(Path(config.distill_from)).requires_grad_(False)
        self.cell: Any = model.base.cell
        found, expected = len(self.tower.pre_layrnorm.weight), model.base.query_dim
        if found != expected:
            raise UserError(
                f"{config.distill_from}: is {found} wide, the base's tower {expected}; give another teacher"
            )

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
