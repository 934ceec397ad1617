"""`pave extract video`: the visual tokens of the key frames, so that no epoch encodes the same frames again.

files: <video>.safetensors: float[T,S,Q+D], for each pooled token the tower's features, then the projected ones
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from pave.media import feature_files
from pave.models.base import Base, LoadSettings, get_base
from pave.sides import base as sides
from pave.types import Clip, SideTokens, UserError


@dataclass(frozen=True)
class Options:
    """Of the base; the same as in the config of the run that reads the store."""

    base: str = "llava_onevision"
    """Plugin in pave/models/bases."""
    frames: int = 32
    """T, key frames a video."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the weights."""


class VisionEncoder(nn.Module):
    """A base without its LLM."""

    def __init__(self, base: Base) -> None:
        super().__init__()
        self.base = base
        base.hf.model.language_model = None
        base.hf.lm_head = None


class SideChannel(sides.SideChannel[Options, VisionEncoder, Clip]):
    """The key frames themselves, as the base encodes them."""

    options_type = Options
    extractors = ("base",)
    """Which base it was is told by the hash of its weights."""

    def build(self, weights: Path, options: Options, device: torch.device) -> VisionEncoder:
        """Load tower and projector of a base. Raises UserError: no base, or one whose tokens cannot be stored."""
        base = get_base(options.base).load(str(weights), LoadSettings(getattr(torch, options.dtype)))
        # What depends on the question or the size of the frames cannot be stored; and a base of another structure
        # than transformers' LLaVA has no LLM to take out.
        depends = base.prompt_conditioned or base.multi_axis_positions
        if depends or not hasattr(base.hf.model, "language_model"):
            raise UserError(f"{weights}: video tokens of base '{options.base}' cannot be stored; extract none")
        return VisionEncoder(base).to(device)

    def reader(self, encoder: VisionEncoder, options: Options) -> Callable[[Path], Clip]:
        """From a video to its key frames. Raises UserError as `read_clip`."""
        from pave.media.video import read_clip  # training from stored tokens needs no video decoder

        return partial(read_clip, frames=options.frames)

    @torch.no_grad()
    def encode(self, inputs: Clip, encoder: VisionEncoder, options: Options) -> SideTokens:
        """Compute query and embeds side by side, on the CPU."""
        pixels = encoder.base.preprocess(inputs.frames).to(next(encoder.parameters()).device)
        query, embeds = encoder.base.encode(pixels[None])
        x = torch.cat([query[0].float().cpu(), embeds[0].float().cpu()], dim=-1)
        return SideTokens(x, torch.from_numpy(inputs.seconds).float())

    def load(self, path: Path) -> SideTokens:
        """Read float32[T,S,Q+D]. Raises UserError."""
        return feature_files.read(path, self.extractors)
