"""Train a tower with a teacher: the LLM's hidden states at visual tokens learn to resemble the teacher's features.

As the first stages of Video-Panda do. The official class that mixes the LLM's layers is not public; here it is
pave/models/distillation_head.py: a learnt mean of normed layers and one linear map.
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
from pave.models.patched_model import PatchedModel
from pave.types import UserError

CLIP_FRAMES = 4
"""Frames that the teacher encodes together."""


class Teacher:
    """A frozen LanguageBind video tower."""

    def __init__(self, model: PatchedModel, config: Config) -> None:
        """Load the tower of `distill_from`. Raises UserError where its width is not that of the base's tower."""
        self.tower = languagebind_video.load(Path(config.distill_from)).requires_grad_(False)
        assert model.base.token_pixels is not None  # models/trainable.py refuses other bases
        self.token_pixels = model.base.token_pixels

        width, expected_width = len(self.tower.pre_layrnorm.weight), model.base.query_dim
        if width != expected_width:
            raise UserError(
                f"{config.distill_from}: is {width} wide, the base's tower {expected_width}; give another teacher"
            )

    def __call__(self, model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Run PatchedModel.forward with a loss of answers plus distance to the teacher."""
        return model(**inputs, targets=self.teacher_features(inputs["pixels"], inputs["ids"].device))

    @torch.no_grad()
    def teacher_features(self, pixels: Tensor | Sequence[Tensor], device: torch.device) -> list[Tensor]:
        """Encode videos float[T,3,h,w] in CLIP's normalisation into one vector per visual token: float[T,h',w',C] each.

        The teacher gets whole frames, squeezed to its own square size.
        """
        self.tower.to(device)
        size = self.tower.image_size

        features = []
        for video in pixels:
            frames = F.interpolate(video.to(device), size=(size, size), mode="bilinear", antialias=True)
            patches = self.tower(frames.unflatten(0, (-1, CLIP_FRAMES)))[:, :, 1:].flatten(0, 1)

            # From the tower's square grid of patches to the base's grid of visual tokens.
            edge = math.isqrt(patches.shape[1])
            grid = patches.transpose(1, 2).unflatten(2, (edge, edge))
            height, width = video.shape[-2:]
            grid = F.adaptive_avg_pool2d(grid, (height // self.token_pixels, width // self.token_pixels))
            features.append(grid.permute(0, 2, 3, 1))
        return features
