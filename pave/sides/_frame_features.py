"""Frames of a video through a picture or video tower."""

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
    """Tokens on the CPU of frames as the tower's `prepare` makes them, each frame's pooled and with its time."""
    batch = max(BATCH // encoder.frames, 1) * encoder.frames
    parts = torch.from_numpy(clip.frames).split(batch)
    x = torch.cat([pool(encoder.patches(part)).float().cpu() for part in parts])
    return SideTokens(x, torch.from_numpy(clip.seconds).float())
