"""The audio side: one ImageBind token for every 2 s of sound, one a second.

encode: video or sound file -> SideTokens float[K,1,C], K = whole seconds - 1, C = 1024 with the huge tower
files:  <video>.safetensors of `pave extract`, or <video>.pt as published: float[K,C] or float[A,B,C]
The release first turned the sound track into an mp3; reading it directly gives slightly different values.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from pave.encoders import imagebind_audio
from pave.io import store
from pave.io.audio import HOP, RATE, WINDOW, mel_windows, read_waveform, resample
from pave.types import SideTokens, UserError

DIM = 1024
"""Width of the published features."""
EXTRACTOR = "imagebind_audio"
STEP = HOP / RATE
"""Seconds from one step to the next."""
BATCH = 32
"""Windows through the tower at once."""


def load(path: Path) -> SideTokens:
    """float32[K,1,C] from our feature file, or from an official .pt one, which states no times. UserError: unusable."""
    if path.suffix == ".pt":
        return _load_official(path)
    return store.read(path, EXTRACTOR)


def _load_official(path: Path) -> SideTokens:
    x = store.read_torch(path)
    if not isinstance(x, Tensor) or x.ndim not in (2, 3):
        found = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise UserError(f"{path}: holds {found}, expected a tensor (steps, width) or (steps, tokens, width)")
    # Every token becomes a step of its own, the class token too, as in the release.
    return SideTokens(x.detach().float().reshape(-1, 1, x.shape[-1]))


def build(weights: Path, device: torch.device | str = "cpu") -> imagebind_audio.Tower:
    """The encoder from imagebind_huge.pth or an audio tower as .safetensors. UserError: not such a file."""
    return imagebind_audio.load(weights).to(device)


@torch.no_grad()
def encode(path: Path, encoder: imagebind_audio.Tower, inplace_mean: bool = True) -> SideTokens:
    """Tokens of a video's sound, on the CPU, each with the middle of its 2 s. UserError: no sound track, damaged."""
    sound = read_waveform(path)
    mel = mel_windows(resample(sound.x, sound.rate), inplace_mean)
    device = next(encoder.parameters()).device
    x = torch.cat([encoder(part.to(device)).cpu() for part in mel.split(BATCH)])
    return SideTokens(x[:, None], (WINDOW / 2 + HOP * torch.arange(len(x))) / RATE)
