"""`pave extract video`: what the frozen tower and projector make of the key frames, so that no epoch does it again.

files: <video>.safetensors: float[T,S,Q+D], for each pooled token the tower's features, then the projected ones
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pave.media import feature_files
from pave.models.bases._loading import Settings
from pave.types import VIDEO, Clip, SideTokens, UserError
from pave.utils import registry

EXTRACTORS = ("base",)


@dataclass(frozen=True)
class Options:
    """Of the base; the same as in the config of the run that reads the store."""

    base: str = "llava_onevision"
    """Plugin in pave/bases."""
    frames: int = 32
    """T, key frames a video."""
    dtype: str = "float32"
    """Of the weights: float32, bfloat16 or float16."""


class Eyes(nn.Module):
    """A base without its language model."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        base.hf.model.language_model = None  # type: ignore[union-attr, assignment]
        base.hf.lm_head = None  # type: ignore[union-attr, assignment]


def extractor(options: Options) -> str:
    """Id of the encoder; which base it was is told by the hash of its weights."""
    return EXTRACTORS[0]


def load(path: Path) -> SideTokens:
    """float32[T,S,Q+D]. UserError: unusable."""
    return feature_files.read(path, EXTRACTORS)


def build(weights: Path, options: Options, device: torch.device | str = "cpu") -> Eyes:
    """Tower and projector of a base. UserError: not a base, or one whose positions depend on the size of pictures."""
    base = registry.load("bases", options.base).load(str(weights), Settings(getattr(torch, options.dtype)))
    if hasattr(base, "positions") or not hasattr(base.hf.model, "language_model"):
        raise UserError(f"{weights}: video tokens of base '{options.base}' cannot be stored; extract none")
    return Eyes(base).to(device)


def reader(encoder: Eyes, options: Options) -> Callable[[Path], Clip]:
    """From a video to its key frames. UserError as `read_clip`."""
    from pave.media.video import read_clip

    return partial(read_clip, frames=options.frames)


@torch.no_grad()
def encode(clip: Clip, encoder: Eyes, options: Options) -> SideTokens:
    """Query and embeds side by side, on the CPU."""
    pixels = encoder.base.preprocess(clip.frames).to(next(encoder.parameters()).device)  # type: ignore[operator]
    seen = encoder.base.encode(pixels[None])  # type: ignore[operator]
    return SideTokens(torch.cat([t[0].float().cpu() for t in seen], -1), torch.from_numpy(clip.seconds).float())


def ids(base: Any, pixels: Any, seconds: Tensor | None) -> list[int]:
    """What stands for a video among token ids: VIDEO for each visual token, and text that a base writes between rows.

    `pixels` are what the base's `preprocess` made, or stored tokens; seconds float[T].
    """
    rows, size = len(pixels), tuple(pixels.shape[-2:])
    if hasattr(base, "video_ids"):
        return base.video_ids(rows, size, seconds)
    return [VIDEO] * base.visual_tokens(rows, size)
