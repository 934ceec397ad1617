"""Frames of a video through an image or video tower."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pave.models.encoders import languagebind_video, siglip
from pave.types import Clip, SideTokens

Encoder = siglip.Tower | languagebind_video.Tower

BATCH = 32
"""Frames through the tower at once."""


@torch.no_grad()
def encode(clip: Clip, encoder: Encoder, pool: Callable[[Tensor], Tensor]) -> SideTokens:
    """Encode frames, as the tower's `prepare` makes them, into pooled tokens on the CPU, a step a frame."""
    # A video tower takes whole groups of frames.
    batch = max(BATCH // encoder.frames, 1) * encoder.frames
    frames = torch.from_numpy(clip.frames)
    x = torch.cat([pool(encoder.patches(part)).float().cpu() for part in frames.split(batch)])

    return SideTokens(x, torch.from_numpy(clip.seconds).float())
