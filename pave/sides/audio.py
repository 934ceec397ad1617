"""The audio side: one ImageBind token for every 2 s of sound, one a second.

encode: video or sound file -> SideTokens float[K,1,C], K = whole seconds - 1, C = 1024 with the huge tower
files:  <video>.safetensors of `pave extract`, or <video>.pt as published: float[K,C] or float[A,B,C]
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
from pave.media.audio import HOP, RATE, WINDOW, mel_windows, read_waveform, resample
from pave.models.encoders import imagebind_audio
from pave.types import SideTokens, UserError

DIM = 1024
"""Width of the published features."""
EXTRACTORS = ("imagebind_audio",)
NORM = 20.0
"""Length of every row: ImageBind's fixed scale on a unit vector."""
BATCH = 32
"""Windows through the tower at once."""
FAINT = 1e-4
"""A sound track that never gets louder, of 1, is called silent: three bits of 16."""


@dataclass(frozen=True)
class Options:
    """How sound becomes windows; both switches on is what the release did."""

    inplace_mean: bool = False
    """Each window also loses, over its first second, the mean of the window before it."""
    mp3: bool = False
    """The sound track goes through an mp3 of 44.1 kHz first."""


class Windows(NamedTuple):
    """What is heard in a file."""

    mel: Tensor
    """float[K,1,128,204]"""
    seconds: float
    loudest: float


def extractor(options: Options) -> str:
    """Id of the encoder, whatever the options."""
    return EXTRACTORS[0]


def load(path: Path) -> SideTokens:
    """float32[K,1,C] from our feature file, or from an official .pt one, which states no times. UserError: unusable."""
    if path.suffix == ".pt":
        return _load_official(path)
    return feature_files.read(path, EXTRACTORS)


def _load_official(path: Path) -> SideTokens:
    x = feature_files.read_torch(path)
    if not isinstance(x, Tensor) or x.ndim not in (2, 3):
        found = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise UserError(f"{path}: holds {found}, expected a tensor (steps, width) or (steps, tokens, width)")
    # Every token becomes a step of its own, the class token too, as in the release.
    return SideTokens(x.detach().float().reshape(-1, 1, x.shape[-1]))


def build(weights: Path, options: Options, device: torch.device | str = "cpu") -> imagebind_audio.Tower:
    """The encoder from imagebind_huge.pth or an audio tower as .safetensors. UserError: not such a file."""
    return imagebind_audio.load(weights).to(device)


def reader(encoder: imagebind_audio.Tower, options: Options) -> Callable[[Path], Windows]:
    """From a video or sound file to its windows. UserError: no sound track, damaged."""
    return partial(_listen, options=options)


def _listen(path: Path, options: Options) -> Windows:
    sound = read_waveform(path, options.mp3)
    mel = mel_windows(resample(sound.x, sound.rate), options.inplace_mean)
    return Windows(mel, sound.x.shape[1] / sound.rate, sound.x.abs().max().item())


def note(windows: Windows) -> str:
    """What is unusual about a sound track that was extracted all the same."""
    if windows.loudest < FAINT:
        return "silent"
    return f"{windows.seconds:.2f} s, padded with silence to {WINDOW // RATE} s" if windows.seconds < 2 else ""


@torch.no_grad()
def encode(windows: Windows, encoder: imagebind_audio.Tower, options: Options) -> SideTokens:
    """Tokens on the CPU, each with the middle of its 2 s."""
    device = next(encoder.parameters()).device
    x = torch.cat([encoder(part.to(device)).cpu() for part in windows.mel.split(BATCH)])
    return SideTokens(x[:, None], (WINDOW / 2 + HOP * torch.arange(len(x))) / RATE)


def suspicious(x: Tensor) -> str:
    """Why float[K,1,C] cannot come from ImageBind, or nothing; half precision keeps the norm to about 0.4 %."""
    far = (x.norm(dim=-1) - NORM).abs().max().item()
    return f"a row's norm is {far:.2f} from {NORM:g}" if far > 0.02 * NORM else ""
