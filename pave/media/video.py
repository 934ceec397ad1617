"""Read key frames from a video file or from a folder of images."""

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

from pave.media.container import first_stream, open_media
from pave.media.frame_sampling import FrameSampling
from pave.types import Clip, Images, UserError

SEEKABLE = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
"""Containers that keep when each packet is shown, and jump to key frames; others are decoded from the start."""


@dataclass(frozen=True)
class VideoInfo:
    """Properties of a video file."""

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
    """int64[N], time stamps in the container's unit, or 0, 1, 2, ... where they are missing or unreliable."""
    seconds: np.ndarray
    """float[N], from the first frame on."""
    key_ticks: np.ndarray
    """int64, of the key frames to jump to, ascending; empty: decode from the start and count."""
    fps: float


def read_info(path: Path) -> VideoInfo:
    """Read duration, frame rate, size and exact number of frames. Raises UserError as `read_clip`."""
    timeline = _read_timeline(path)
    with open_media(path) as container:
        stream = first_stream(container.streams.video, path, "video")
        frame = next(container.decode(stream))
        height, width, _ = _to_upright_rgb(frame, frame.width, frame.height).shape
        has_audio = bool(container.streams.audio)

    seconds = timeline.seconds[-1].item() + 1 / timeline.fps
    return VideoInfo(seconds, timeline.fps, width, height, len(timeline.ticks), has_audio)


DEFAULT_SAMPLING = FrameSampling()


def read_clip(path: Path, frames: FrameSampling | int = DEFAULT_SAMPLING) -> Clip:
    """Read key frames of a video, or the first images of a folder of numbered .jpg files; a number means so many.

    At a rate, or by a base's own rule, those of a folder are chosen like a video's. Raises UserError: no such file, no
    video stream, no frames, cut off or damaged.
    """
    sampling = FrameSampling(frames) if isinstance(frames, int) else frames
    if path.is_dir():
        return _read_folder(path, sampling)
    return read_frames(path, lambda seconds, fps: sampling.choose(len(seconds), fps), lambda picture: picture)


def read_frames(
    path: Path, choose: Callable[[np.ndarray, float], np.ndarray], prepare: Callable[[np.ndarray], np.ndarray]
) -> Clip:
    """Read the frames whose numbers `choose(seconds, fps)` gives, each changed by `prepare` from uint8[H,W,3].

    Only prepared frames are kept, so a long video needs no more memory than they take. Raises UserError as `read_clip`.
    """
    timeline = _read_timeline(path)
    numbers = choose(timeline.seconds, timeline.fps)

    frames = np.empty(0, np.uint8)
    for number, picture in _decode(path, timeline, np.unique(numbers)):
        prepared = prepare(picture)
        if not frames.size:
            frames = np.empty((len(numbers), *prepared.shape), prepared.dtype)
        frames[numbers == number] = prepared
    return Clip(frames, timeline.seconds[numbers])


class _Packet(NamedTuple):
    """What a packet states of itself; its data is not kept, since all packets together are the file."""

    tick: int | None
    is_key: bool
    is_hidden: bool
    is_corrupt: bool


def _read_timeline(path: Path) -> _Timeline:
    with open_media(path) as container:
        stream = first_stream(container.streams.video, path, "video")
        packets = []
        for packet in container.demux(stream):
            if packet.size:
                packets.append(_Packet(packet.pts, packet.is_keyframe, packet.is_discard, packet.is_corrupt))
        fps = float(stream.average_rate or stream.guessed_rate or 0)
        tick_seconds = float(stream.time_base or 0)
        is_timed = container.format.name in SEEKABLE and all(packet.tick is not None for packet in packets)
    if any(packet.is_corrupt for packet in packets):
        raise UserError(f"{path}: damaged or cut off: it has broken video packets; copy or convert it again")

    # An edit list hides packets that are only needed to decode others. Frames before the first key frame need frames
    # of a part that was cut away.
    key_ticks = sorted(packet.tick for packet in packets if packet.is_key and packet.tick is not None)
    shown_ticks = [packet.tick for packet in packets if not packet.is_hidden and packet.tick is not None]
    ticks = sorted(tick for tick in shown_ticks if key_ticks and tick >= key_ticks[0])

    if not is_timed or not ticks:
        key_ticks, ticks = [], list(range(_count_frames(path)))
        tick_seconds = 1 / fps if fps else 0
    if not ticks or not fps:
        raise UserError(f"{path}: its video track has no frames; give another file")
    return _Timeline(np.array(ticks), (np.array(ticks) - ticks[0]) * tick_seconds, np.array(key_ticks), fps)


def _count_frames(path: Path) -> int:
    """Decode everything: exact for any container."""
    with open_media(path) as container:
        return sum(1 for _ in container.decode(first_stream(container.streams.video, path, "video")))


def _decode(path: Path, timeline: _Timeline, numbers: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (number, uint8[H,W,3]) of the frames with these ascending numbers; where it can it jumps to key frames."""
    with open_media(path) as container:
        stream = first_stream(container.streams.video, path, "video")
        needed_ticks = set(timeline.ticks[numbers].tolist())
        frames: Iterator[tuple[int, VideoFrame]] = iter(())
        if not len(timeline.key_ticks):
            frames = enumerate(container.decode(stream))

        width, height = stream.width, stream.height  # a stream may change its size on the way
        last_tick = -math.inf
        for number in numbers.tolist():
            target = timeline.ticks[number]
            key_ticks = timeline.key_ticks[timeline.key_ticks <= target]
            if len(key_ticks) and key_ticks[-1] > last_tick:
                container.seek(key_ticks[-1].item(), stream=stream)
                frames = _decode_after_seek(container, stream, needed_ticks)

            last_tick, frame = next(((tick, frame) for tick, frame in frames if tick >= target), (math.inf, None))
            if frame is None or last_tick != target or frame.is_corrupt:
                time = f"{timeline.seconds[number]:.2f} s"
                raise UserError(f"{path}: damaged: the frame at {time} cannot be decoded; copy or convert it again")
            yield number, _to_upright_rgb(frame, width, height)


def _decode_after_seek(
    container: InputContainer, stream: VideoStream, needed_ticks: set[int]
) -> Iterator[tuple[int, VideoFrame]]:
    """Yield (tick, frame) of what follows; in H.264, frames that are neither needed nor referred to are skipped."""
    for packet in container.demux(stream):
        if stream.codec_context.name == "h264":
            is_needed = packet.pts is None or packet.pts in needed_ticks
            stream.codec_context.skip_frame = "DEFAULT" if is_needed else "NONREF"
        for frame in packet.decode():
            if isinstance(frame, VideoFrame) and frame.pts is not None:
                yield frame.pts, frame


def _to_upright_rgb(frame: VideoFrame, width: int, height: int) -> np.ndarray:
    """uint8[H,W,3], scaled to the given size, then turned upright."""
    pixels = frame.to_ndarray(format="rgb24", width=width, height=height)
    return np.rot90(pixels, round(frame.rotation / 90))


def _read_folder(path: Path, sampling: FrameSampling) -> Clip:
    """Read .jpg files by number, one second each. The official rule: the first ones, the last one repeated."""
    files = list(path.glob("*.jpg"))
    misnamed = [file for file in files if not file.stem.isdecimal()]
    if misnamed or not files:
        found = f"found '{misnamed[0].name}'" if misnamed else "found none"
        raise UserError(f"{path}: {found}, expected pictures named by number, as 0.jpg, 1.jpg, ...")
    files.sort(key=lambda file: int(file.stem))

    if sampling.frames_per_second or sampling.native_rule:
        numbers = sampling.choose(len(files), 1.0)
    else:
        files = files[: sampling.max_frames]
        numbers = np.minimum(np.arange(sampling.max_frames), len(files) - 1)

    images = [_read_image(file) for file in files]
    for file, image in zip(files, images):
        if image.shape != images[0].shape:
            raise UserError(f"{file}: is {image.shape[:2]} pixels high and wide, the first is {images[0].shape[:2]}")
    return Clip(np.stack(images)[numbers], numbers.astype(np.float64))


def read_images(files: Sequence[Path]) -> Images:
    """Read separate images. Raises UserError for one that is missing or broken."""
    return Images([_read_image(file) for file in files])


def _read_image(file: Path) -> np.ndarray:
    try:
        return np.asarray(Image.open(file).convert("RGB"))
    except OSError as error:
        raise UserError(f"{file}: not a readable picture: {error}; copy it again") from error
