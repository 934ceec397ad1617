"""The audio side: one ImageBind token for every 2 s of sound, one a second.

encode: video or sound file -> SideTokens float[K,1,C], K = whole seconds - 1, C = 1024 with the huge tower
files:  <video>.safetensors of `pave extract`, or the official <video>.pt: float[K,C] or float[A,B,C]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pave.media import feature_files
from pave.media.audio import HOP, SAMPLE_RATE, WINDOW, mel_windows, read_waveform, resample
from pave.models.encoders import imagebind_audio
from pave.sides import _official_features, base
from pave.types import SideTokens

NORM = 20.0
"""Length of every row: ImageBind's fixed scale on a unit vector."""
NORM_TOLERANCE = 0.02
"""Relative; half precision keeps the norm to about 0.4 %."""
BATCH = 32
"""Windows through the tower at once."""
SILENCE = 1e-4
"""A sound track whose peak, of 1, stays below is called silent: three bits of 16."""


@dataclass(frozen=True)
class Options:
    """How sound becomes windows; the official code has both switches on."""

    inplace_mean: bool = False
    """Each window also loses, over its first second, the mean of the window before it."""
    mp3: bool = False
    """The sound track goes through an mp3 of 44.1 kHz first."""


class Sound(NamedTuple):
    """The sound of one file, cut into windows."""

    mel: Tensor
    """float[K,1,128,204]"""
    seconds: float
    peak: float
    """Largest absolute sample, of 1."""


class SideChannel(base.SideChannel[Options, imagebind_audio.Tower, Sound]):
    """Sound as ImageBind tokens."""

    options_type = Options
    extractors = ("imagebind_audio",)

    def build(self, weights: Path, options: Options, device: torch.device) -> imagebind_audio.Tower:
        """Load the tower from imagebind_huge.pth or .safetensors. Raises UserError where it is not such a file."""
        return imagebind_audio.load(weights).to(device)

    def reader(self, encoder: imagebind_audio.Tower, options: Options) -> Callable[[Path], Sound]:
        """From a video or sound file to its windows. Raises UserError: no sound track, damaged."""
        return partial(_read_sound, options=options)

    @torch.no_grad()
    def encode(self, inputs: Sound, encoder: imagebind_audio.Tower, options: Options) -> SideTokens:
        """Compute tokens on the CPU, each with the middle of its 2 s."""
        device = next(encoder.parameters()).device
        x = torch.cat([encoder(part.to(device)).cpu() for part in inputs.mel.split(BATCH)])
        return SideTokens(x[:, None], (WINDOW / 2 + HOP * torch.arange(len(x))) / SAMPLE_RATE)

    def load(self, path: Path) -> SideTokens:
        """Read float32[K,1,C] from our file, or from an official .pt, which states no times. Raises UserError."""
        if path.suffix != ".pt":
            return feature_files.read(path, self.extractors)

        expected = "(steps, width) or (steps, tokens, width)"
        x = _official_features.read(path, lambda shape: len(shape) in (2, 3), expected)
        # Every token becomes a step, the class token too, as in the official code.
        return SideTokens(x.reshape(-1, 1, x.shape[-1]))

    def note(self, inputs: Sound) -> str:
        """Say what is unusual about a sound track: silence, or less than one window."""
        if inputs.peak < SILENCE:
            return "silent"
        if inputs.seconds < WINDOW / SAMPLE_RATE:
            return f"{inputs.seconds:.2f} s, padded with silence to {WINDOW // SAMPLE_RATE} s"
        return ""

    def suspicion(self, x: Tensor) -> str:
        """Say why float[K,1,C] cannot come from ImageBind, whose rows all have the same norm."""
        error = (x.norm(dim=-1) - NORM).abs().max().item()
        return f"a row's norm is {error:.2f} from {NORM:g}" if error > NORM_TOLERANCE * NORM else ""


def _read_sound(path: Path, options: Options) -> Sound:
    waveform = read_waveform(path, options.mp3)
    mel = mel_windows(resample(waveform.x, waveform.rate), options.inplace_mean)
    return Sound(mel, waveform.x.shape[1] / waveform.rate, waveform.x.abs().max().item())
