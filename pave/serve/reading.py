"""Opening files that anyone may have sent: what they are is checked first, and a process of its own decodes them."""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import TimeoutError
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import av

from pave.io.video import Info, info, read_clip
from pave.io.workers import one_thread_each
from pave.types import Clip, UserError

FORMATS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "mpegts", "wav", "mp3", "flac", "ogg", "aac")
"""Containers that hold what they play; others, such as lists of files, can name files of this machine."""
MEMORY = 8 << 30
"""Bytes that a decoding process may take."""


class Refused(UserError):
    """A request that is not served, with its HTTP status."""

    def __init__(self, status: int, text: str, retry_after: int | None = None) -> None:
        super().__init__(status, text, retry_after)
        self.status, self.text, self.retry_after = status, text, retry_after

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Limits:
    """How much one request may ask for."""

    megabytes: int = 100
    """Of all its files together."""
    seconds: float = 600
    """How long a video or sound track may be."""
    pixels: int = 3840 * 2160
    """Of a frame."""
    new_tokens: int = 512
    """Of an answer."""
    characters: int = 20_000
    """Of question and history."""
    upload: float = 120
    """Seconds in which it must have arrived."""
    reading: float = 120
    """Seconds that its files may take to decode."""


class Wanted(NamedTuple):
    """One side-channel that is made now."""

    read: Callable[[Path], Any]
    """Its plugin's reader."""
    path: Path
    own: bool
    """Taken from the video, which may have none; a file that was given must be one."""


class Media(NamedTuple):
    """What was decoded."""

    clip: Clip
    info: Info | None
    sides: dict[str, Any]
    """What each reader made, or a UserError where the video has no such channel."""


Read = Callable[[Path, int, Mapping[str, Wanted]], Media]


def read(video: Path, frames: int, wanted: Mapping[str, Wanted]) -> Media:
    """Key frames and what the readers make. UserError: an unreadable video, or side-channel file."""
    clip = read_clip(video, frames)
    found = None if video.is_dir() else info(video)
    return Media(clip, found, {name: _side(side) for name, side in wanted.items()})


def _side(side: Wanted) -> Any:
    try:
        return side.read(side.path)
    except UserError as error:
        if side.own:
            return error
        raise


def read_guarded(video: Path, frames: int, wanted: Mapping[str, Wanted], limits: Limits) -> Media:
    """The same for files of strangers. Refused: another kind of file, too long, too large."""
    for path in dict.fromkeys([video, *(side.path for side in wanted.values())]):
        check(path, limits)
    return read(video, frames, wanted)


def check(path: Path, limits: Limits) -> None:
    """Refused unless a file is a video or a sound of a known container, within limits."""
    # Through a file object and without protocols nothing but this very file can be opened.
    options = {"protocol_whitelist": "data"}
    try:
        with path.open("rb") as file, av.open(file, "r", options=options, metadata_errors="ignore") as container:
            if container.format.name not in FORMATS:
                raise Refused(415, f"{path}: is {container.format.name}; send mp4, mov, webm, mkv, avi or a sound file")
            sizes = [stream.width * stream.height for stream in container.streams.video]
            if max(sizes, default=0) > limits.pixels:
                raise Refused(413, f"{path}: frames of {max(sizes)} pixels, at most {limits.pixels}; scale it down")
            # What a header states of the length need not be true; and recordings may begin at any time.
            times = [
                (float(p.pts * p.time_base), float((p.pts + (p.duration or 0)) * p.time_base))
                for p in container.demux()
                if p.pts is not None and p.time_base
            ]
    except av.FFmpegError as error:
        what = "damaged, cut off, or no video or sound"
        raise Refused(415, f"{path}: {what}: {error.strerror}; send another file") from error
    seconds = max((end for _, end in times), default=0.0) - min((start for start, _ in times), default=0.0)
    if seconds > limits.seconds:
        raise Refused(413, f"{path}: {seconds:.0f} s long, at most {limits.seconds:g} s; cut it")


@contextmanager
def guarded(limits: Limits) -> Iterator[Read]:
    """Yields a `read` for files of strangers, in one process that may hang or die without harm to this one."""
    from pebble import ProcessExpired, ProcessPool

    context = multiprocessing.get_context("spawn")
    with one_thread_each(), ProcessPool(1, context=context, initializer=_bound_memory) as pool:

        def read_there(video: Path, frames: int, wanted: Mapping[str, Wanted]) -> Media:
            future = pool.schedule(read_guarded, args=[video, frames, wanted, limits], timeout=limits.reading)
            try:
                return future.result()
            except TimeoutError as error:
                raise Refused(422, f"{video}: decoding took over {limits.reading:g} s; convert or cut it") from error
            except (ProcessExpired, MemoryError) as error:
                raise Refused(422, f"{video}: decoding it failed ({error}); convert it") from error

        try:
            yield read_there
        finally:
            pool.stop()


def _bound_memory() -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
