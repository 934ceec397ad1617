"""Turn the sound track of a file into the log-mel windows that ImageBind's audio tower reads."""

from __future__ import annotations

import itertools
import math
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch
import torch.nn.functional as F
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from torch import Tensor

from pave.media.container import first_stream, open_media
from pave.types import UserError

SAMPLE_RATE = 16_000
"""Hz, of everything below `resample`."""
WINDOW, HOP = 2 * SAMPLE_RATE, SAMPLE_RATE
"""Samples: a window of 2 s every second."""
FRAME, SHIFT, FFT = 400, 160, 512
"""Samples: frames of 25 ms every 10 ms, zero padded for the transform."""
BINS, COLUMNS = 128, 204
MEAN, STD = -4.268, 9.138
"""Of log-mel values over AudioSet, as ImageBind has them."""
MAX_PLANAR_CHANNELS = 7
"""PyAV counts the channels of a planar frame up to a null behind them, which frames of eight or more do not have: the
process would end with a segmentation fault."""
CHUNK = 64
"""Windows transformed at once, which bounds the memory that an hour of sound takes."""


class Waveform(NamedTuple):
    """Decoded sound."""

    x: Tensor
    """float[A,N], A channels, within -1..1."""
    rate: int
    """Hz"""


def read_waveform(path: Path, mp3: bool = False) -> Waveform:
    """Read the first sound track at its own rate. Raises UserError: no file, no sound track, empty, damaged.

    `mp3` reads an mp3 made of the track, as the official code does, which changes it slightly.
    """
    parts: list[np.ndarray] = []
    with av.open(_encode_mp3(path), "r") if mp3 else open_media(path) as container:
        stream = first_stream(container.streams.audio, path, "sound")
        planar, packed = AudioResampler(format="fltp"), AudioResampler(format="flt")
        for frame in container.decode(stream):
            parts += _to_floats(frame, planar, packed)
        rate = stream.rate

    if not sum(part.shape[1] for part in parts):
        raise UserError(f"{path}: its sound track is empty; give a file with sound")
    return Waveform(torch.from_numpy(np.concatenate(parts, axis=1)), rate)


def _to_floats(frame: AudioFrame, planar: AudioResampler, packed: AudioResampler) -> list[np.ndarray]:
    """Convert a frame, by one of two resamplers -> parts float[A,n]."""
    if frame.layout.nb_channels <= MAX_PLANAR_CHANNELS:
        return [part.to_ndarray() for part in planar.resample(frame)]

    parts = []
    for part in packed.resample(frame):
        channels = part.to_ndarray().reshape(-1, part.layout.nb_channels).T
        # Channel by channel in memory as well, since sums round by that order.
        parts.append(np.ascontiguousarray(channels))
    return parts


def _encode_mp3(path: Path) -> BytesIO:
    """Make an mp3 of the first sound track, as official: 44.1 kHz, 16 bit, stereo, 128 kbit/s."""
    file = BytesIO()
    with open_media(path) as container, av.open(file, "w", format="mp3") as out:
        stream = out.add_stream("libmp3lame", rate=44_100, layout="stereo")
        stream.bit_rate = 128_000
        to_stereo = AudioResampler(format="s16p", layout="stereo", rate=44_100, frame_size=stream.frame_size)
        sound = first_stream(container.streams.audio, path, "sound")
        # None flushes the resampler.
        for frame in itertools.chain(container.decode(sound), [None]):
            for part in to_stereo.resample(frame):
                out.mux(stream.encode(part))
        out.mux(stream.encode(None))
    file.seek(0)
    return file


def resample(x: Tensor, rate: int, to: int = SAMPLE_RATE) -> Tensor:
    """Resample float[A,N] at `rate` Hz -> float[A,ceil(N*to/rate)] at `to` Hz: torchaudio's default windowed sinc."""
    if rate == to:
        return x
    divisor = math.gcd(rate, to)
    old, new = rate // divisor, to // divisor
    kernel, reach = _sinc_kernel(old, new)
    padded = F.pad(x, (reach, reach + old))

    # One channel at a time is several times faster here than a batch of them.
    channels = [F.conv1d(channel[None, None], kernel, stride=old)[0].T.flatten() for channel in padded]
    return torch.stack(channels)[:, : math.ceil(x.shape[1] * new / old)]


def _sinc_kernel(old: int, new: int) -> tuple[Tensor, int]:
    """One Hann-windowed low-pass per output phase, float[new,1,2*reach+old], and its reach in old samples."""
    num_zeros, rolloff = 6, 0.99
    cutoff = min(old, new) * rolloff
    reach = math.ceil(num_zeros * old / cutoff)

    # float32 on purpose: the 2e-6 agreement with torchaudio needs its rounding of these times.
    phase = torch.arange(0, -new, -1, dtype=torch.float32)[:, None, None] / new
    time = torch.arange(-reach, reach + old, dtype=torch.float32) / old
    angle = ((phase + time) * cutoff).clamp(-num_zeros, num_zeros)
    hann = torch.cos(angle * math.pi / num_zeros / 2) ** 2
    angle = angle * math.pi
    sinc = torch.where(angle == 0, 1.0, torch.sin(angle) / angle)
    return sinc * hann * (cutoff / old), reach


def num_windows(num_samples: int) -> int:
    """Count the windows of samples at 16 kHz: full seconds less one; the rest is dropped, under 2 s there are 0."""
    return max(num_samples // SAMPLE_RATE - 1, 0)


def mel_windows(x: Tensor, inplace_mean: bool = False) -> Tensor:
    """Map float[A,N] at 16 kHz -> float[K,1,128,204], ImageBind's normalised log-mel of a 2 s window every second.

    Under 2 s the sound is zero padded to one window, where the official code fails. The spectrum is that of the first
    channel; the others count only in the mean. `inplace_mean` repeats a quirk of the official code.
    """
    if x.shape[1] < WINDOW:
        x = F.pad(x, (0, WINDOW - x.shape[1]))
    windows = _centred_windows(x, num_windows(x.shape[1]), inplace_mean)
    return torch.cat([_log_mel(chunk) for chunk in windows.split(CHUNK)])


def _centred_windows(x: Tensor, count: int, inplace_mean: bool) -> Tensor:
    """float[K,32000], the first channel of each window less the window's mean over all channels."""
    seconds = x[:, : (count + 1) * HOP].unfold(1, HOP, HOP)
    means = seconds.double().mean((0, 2))
    window_means = (means[:-1] + means[1:]) / 2
    previous_means = torch.zeros(count, dtype=torch.float64)
    if inplace_mean:
        # Quirk: the official code subtracts in place from overlapping windows, so the first second of a window has
        # already lost the mean of the window before it.
        for i in range(1, count):
            previous_means[i] = window_means[i - 1]
            window_means[i] -= previous_means[i] / 2

    first_seconds = seconds[0, :-1] - (previous_means + window_means)[:, None]
    second_seconds = seconds[0, 1:] - window_means[:, None]
    return torch.cat([first_seconds, second_seconds], dim=1).float()


def _log_mel(windows: Tensor) -> Tensor:
    """Map float[K,32000] -> float[K,1,128,204]: Kaldi's filter bank, padded with zeros and then normalised."""
    frames = windows.unfold(1, FRAME, SHIFT)
    frames = frames - frames.mean(2, keepdim=True)
    previous_samples = torch.cat([frames[..., :1], frames[..., :-1]], dim=2)
    frames = (frames - 0.97 * previous_samples) * torch.hann_window(FRAME, periodic=False)

    power = torch.fft.rfft(frames, FFT).abs() ** 2
    mel = (power @ _mel_bank().T).clamp_min(torch.finfo(torch.float32).eps).log()

    # The padding is added before the scaling, so that it ends as 0.467 and not as 0.
    mel = F.pad(mel.transpose(1, 2), (0, COLUMNS - mel.shape[1]))
    return ((mel - MEAN) / STD)[:, None]


def _mel_bank() -> Tensor:
    """float[128,257]: triangles of equal width on the mel scale, 20 to 8000 Hz."""
    low, high = _mel(torch.tensor([20.0, SAMPLE_RATE / 2]))
    edges = low + (high - low) / (BINS + 1) * torch.arange(BINS + 2)
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]

    mel = _mel(torch.arange(FFT // 2 + 1) * (SAMPLE_RATE / FFT))
    return torch.minimum((mel - left) / (centre - left), (right - mel) / (right - centre)).clamp_min(0)


def _mel(hertz: Tensor) -> Tensor:
    return 1127 * torch.log1p(hertz / 700)
