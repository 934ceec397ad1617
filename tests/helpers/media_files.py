"""Small media files made by the tests, and what a plain decode of everything in them gives."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from helpers.paths import FIXTURES

BUNNY = FIXTURES / "media/bigbuckbunny.mp4"
SURROUND = BUNNY.with_name("surround71.mp4")
TICK = Fraction(1, 1000)


def write_clip(
    path: Path,
    frames: int = 60,
    codec: str | None = "libx264",
    sound: np.ndarray | None = None,
    rate: int = 16_000,
    times: Sequence[int] | None = None,
    size: tuple[int, int] = (96, 64),
    container: dict[str, str] | None = None,
    audio_codec: str = "aac",
    **options: str,
) -> Path:
    """A moving pattern at 25 fps, or at `times` in ms; key frames every 12 frames; `sound` float[A,N] at `rate` Hz."""
    with av.open(path, "w", container_options=container or {}) as out:
        if codec:
            video = out.add_stream(codec, rate=25, options=options)
            video.width, video.height, video.pix_fmt = *size, "rgb8" if codec == "gif" else "yuv420p"
            video.codec_context.gop_size = 12
            if times is not None:
                video.codec_context.time_base = TICK
        if sound is not None:
            audio = out.add_stream(audio_codec, rate=rate, layout="mono" if len(sound) == 1 else "stereo")
        for i in range(frames if codec else 0):
            frame = av.VideoFrame.from_ndarray(pattern(i, size))
            if times is not None:
                frame.pts, frame.time_base = times[i], TICK
            out.mux(video.encode(frame))
        if codec:
            out.mux(video.encode(None))
        if sound is not None:
            wave = av.AudioFrame.from_ndarray(sound.astype(np.float32), "fltp", audio.layout.name)
            wave.sample_rate, wave.pts = rate, 0  # without a time the encoder's lead-in of 1024 samples would stay
            out.mux(audio.encode(wave))
            out.mux(audio.encode(None))
    return path


def pattern(i: int, size: tuple[int, int] = (96, 64)) -> np.ndarray:
    """uint8[H,W,3], different for each i."""
    width, height = size
    picture = np.zeros((height, width, 3), np.uint8)
    picture[..., 0] = i * 4 % 256
    picture[:, i * 3 % width : i * 3 % width + 8] = 255
    picture[i % height, :, 1] = 200
    return picture


def tone(seconds: float, rate: int = 16_000, hertz: float = 440.0) -> np.ndarray:
    """float32[1,N]"""
    return 0.3 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)[None].astype(np.float32)


def every_frame(path: Path) -> list[np.ndarray]:
    """uint8[H,W,3] of all frames, decoded from the start, in the size of the first."""
    with av.open(path) as container:
        frames = list(container.decode(video=0))
    width, height = frames[0].width, frames[0].height
    return [frame.to_ndarray(format="rgb24", width=width, height=height) for frame in frames]


def cut(path: Path, share: float = 0.6) -> Path:
    """A copy that ends early."""
    short = path.with_name(f"cut_{path.name}")
    short.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return short


def copy_picture(source: Path, path: Path, silence: bool) -> Path:
    """The video packets of `source` as they are, with a silent sound track or none."""
    with av.open(source) as given, av.open(path, "w") as out:
        video = out.add_stream_from_template(given.streams.video[0])
        if silence:
            audio = out.add_stream("aac", rate=16_000, layout="mono")
        for packet in given.demux(given.streams.video[0]):
            if packet.dts is not None:
                packet.stream = video
                out.mux(packet)
        if silence:
            wave = av.AudioFrame.from_ndarray(np.zeros((1, 80_000), np.float32), "fltp", "mono")
            wave.sample_rate, wave.pts = 16_000, 0
            out.mux(audio.encode(wave))
            out.mux(audio.encode(None))
    return path
