"""From a video file, or a folder of pictures, to a Clip."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

from pave.media.container import first, opened
from pave.media.frame_sampling import Frames
from pave.types import Clip, Pictures, UserError

SEEKABLE = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
"""Containers that keep when each packet is shown, and jump to key frames; others are decoded from the start."""


@dataclass(frozen=True)
class Info:
    """What a video file holds."""

    seconds: float
    fps: float
    width: int
    """As shown, rotation applied."""
    height: int
    frames: int
    has_audio: bool


class _Timeline(NamedTuple):
    """The frames that a decoder can show, in order."""

    ticks: np.ndarray
    """int64[N], time stamps, or 0, 1, 2, ... where the container keeps none to rely on."""
    seconds: np.ndarray
    """float[N], from the first frame on."""
    keys: np.ndarray
    """int64, ascending ticks of the key frames to jump to; empty: decode from the start and count."""
    fps: float


def info(path: Path) -> Info:
    """Duration, frame rate, size and exact number of frames. UserError as `read_clip`."""
    time = _timeline(path)
    with opened(path) as container:
        stream = first(container.streams.video, path, "video")
        frame = next(container.decode(stream))
        height, width, _ = _picture(frame, frame.width, frame.height).shape
        audio = bool(container.streams.audio)
    return Info(time.seconds[-1].item() + 1 / time.fps, time.fps, width, height, len(time.ticks), audio)


ALWAYS_32 = Frames()


def read_clip(path: Path, frames: Frames | int = ALWAYS_32) -> Clip:
    """Key frames of a video, or the first ones of a folder of numbered .jpg files; a number means always so many.

    With a rate or a base's own rule those of a folder are chosen like a video's. UserError: no such file, no video
    stream, no frames, cut off or damaged.
    """
    chosen = Frames(frames) if isinstance(frames, int) else frames
    if path.is_dir():
        return _read_folder(path, chosen)
    return read_frames(path, lambda seconds, fps: chosen.choose(len(seconds), fps), lambda picture: picture)


def read_frames(
    path: Path, choose: Callable[[np.ndarray, float], np.ndarray], prepare: Callable[[np.ndarray], np.ndarray]
) -> Clip:
    """The frames of a video that `choose(seconds, fps)` numbers, as `prepare` makes them of uint8[H,W,3].

    Only the prepared are kept, so a long video needs no more memory than they take. UserError as `read_clip`.
    """
    time = _timeline(path)
    index = choose(time.seconds, time.fps)
    pictures = np.empty(0, np.uint8)
    for i, picture in _decode(path, time, np.unique(index)):
        prepared = prepare(picture)
        if not pictures.size:
            pictures = np.empty((len(index), *prepared.shape), prepared.dtype)
        pictures[index == i] = prepared
    return Clip(pictures, time.seconds[index])


class _Packet(NamedTuple):
    """What a packet states of itself; its data, all of them together the whole file, is not kept."""

    tick: int | None
    key: bool
    hidden: bool
    corrupt: bool


def _timeline(path: Path) -> _Timeline:
    with opened(path) as container:
        stream = first(container.streams.video, path, "video")
        packets = [_Packet(p.pts, p.is_keyframe, p.is_discard, p.is_corrupt) for p in container.demux(stream) if p.size]
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        tick = float(stream.time_base or 0)
        timed = container.format.name in SEEKABLE and all(p.tick is not None for p in packets)
    if any(p.corrupt for p in packets):
        raise UserError(f"{path}: damaged or cut off: it has broken video packets; copy or convert it again")
    keys = sorted(p.tick for p in packets if p.key and p.tick is not None)
    # An edit list hides packets that are only there to decode others. Those shown before the first key frame need
    # frames of a part that was cut away.
    seen = [p.tick for p in packets if not p.hidden and p.tick is not None]
    ticks = sorted(t for t in seen if keys and t >= keys[0])
    if not timed or not ticks:
        keys, ticks, tick = [], list(range(_count(path))), 1 / rate if rate else 0
    if not ticks or not rate:
        raise UserError(f"{path}: its video track has no frames; give another file")
    return _Timeline(np.array(ticks), (np.array(ticks) - ticks[0]) * tick, np.array(keys), rate)


def _count(path: Path) -> int:
    """How many frames decoding everything gives: exact for any container."""
    with opened(path) as container:
        return sum(1 for _ in container.decode(first(container.streams.video, path, "video")))


def _decode(path: Path, time: _Timeline, numbers: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(number, uint8[H,W,3]) of each frame in `numbers`, ascending; jumps over what lies between where it can."""
    with opened(path) as container:
        stream = first(container.streams.video, path, "video")
        frames: Iterator[tuple[int, VideoFrame]] = iter(())
        if not len(time.keys):
            frames = enumerate(container.decode(stream))
        size = stream.width, stream.height  # a stream may change its size on the way
        last = -math.inf
        for i in numbers.tolist():
            target = time.ticks[i]
            keys = time.keys[time.keys <= target]
            if len(keys) and keys[-1] > last:
                container.seek(keys[-1].item(), stream=stream)
                frames = _from_key(container, stream, set(time.ticks[numbers].tolist()))
            last, frame = next(((tick, f) for tick, f in frames if tick >= target), (math.inf, None))
            if frame is None or last != target or frame.is_corrupt:
                at = f"{time.seconds[i]:.2f} s"
                raise UserError(f"{path}: damaged: the frame at {at} cannot be decoded; copy or convert it again")
            yield i, _picture(frame, *size)


def _from_key(container: InputContainer, stream: VideoStream, wanted: set[int]) -> Iterator[tuple[int, VideoFrame]]:
    """(tick, frame) of what follows a jump; in H.264 without unwanted frames that no other needs."""
    for packet in container.demux(stream):
        if stream.codec_context.name == "h264":
            stream.codec_context.skip_frame = "DEFAULT" if packet.pts is None or packet.pts in wanted else "NONREF"
        yield from ((f.pts, f) for f in packet.decode() if isinstance(f, VideoFrame) and f.pts is not None)


def _picture(frame: VideoFrame, width: int, height: int) -> np.ndarray:
    """uint8[H,W,3], scaled to the given size, then turned upright."""
    pixels = frame.to_ndarray(format="rgb24", width=width, height=height)
    return np.rot90(pixels, round(frame.rotation / 90))


def _read_folder(path: Path, frames: Frames) -> Clip:
    """The release's rule: .jpg only, by number; the first ones, the last repeated; one second a picture."""
    files = list(path.glob("*.jpg"))
    odd = next((f for f in files if not f.stem.isdecimal()), None)
    if odd or not files:
        found = f"found '{odd.name}'" if odd else "found none"
        raise UserError(f"{path}: {found}, expected pictures named by number, as 0.jpg, 1.jpg, ...")
    files = sorted(files, key=lambda f: int(f.stem))
    if frames.rate or frames.own:
        index = frames.choose(len(files), 1.0)
    else:
        files = files[: frames.most]
        index = np.minimum(np.arange(frames.most), len(files) - 1)
    pictures = [_read_picture(f) for f in files]
    for file, picture in zip(files, pictures):
        if picture.shape != pictures[0].shape:
            raise UserError(
                f"{file}: is {picture.shape[:2]} pixels high and wide, the first is {pictures[0].shape[:2]}"
            )
    return Clip(np.stack(pictures)[index], index.astype(np.float64))


def read_pictures(files: Sequence[Path]) -> Pictures:
    """Separate pictures. UserError: one that is missing or broken."""
    return Pictures([_read_picture(file) for file in files])


def _read_picture(file: Path) -> np.ndarray:
    try:
        return np.asarray(Image.open(file).convert("RGB"))
    except OSError as error:
        raise UserError(f"{file}: not a readable picture: {error}; copy it again") from error
