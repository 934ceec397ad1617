"""Opening files that anyone may have sent: what they are is checked first, and a process of its own decodes them."""

from __future__ import annotations

import multiprocessing
import pickle
import resource
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import TimeoutError
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import av

from pave.inference import untrusted_zip
from pave.inference.limits import Limits, Refused
from pave.media.frame_sampling import Frames
from pave.media.video import Info, info, read_clip
from pave.media.worker_pool import one_thread_each
from pave.types import Clip, SideTokens, UserError

FORMATS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "mpegts", "wav", "mp3", "flac", "ogg", "aac")
"""Containers that hold what they play; others, such as lists of files, can name files of this machine."""
MEMORY = 8 << 30
"""Bytes that a decoding process may take."""


class Wanted(NamedTuple):
    """One side-channel that is read now."""

    path: Path
    load: Callable[[Path], SideTokens]
    """From ready features."""
    read: Callable[[Path], Any] | None
    """Its plugin's reader of media; None: there is no encoder for what it reads."""
    own: bool = False
    """Taken from the video, which may have none; a file that was given must be one."""


class Media(NamedTuple):
    """What was read."""

    clip: Clip
    info: Info | None
    sides: dict[str, Any]
    """SideTokens, or what each reader made, or a UserError where the video has no such channel."""


Read = Callable[[Path, Frames, Mapping[str, Wanted]], Media]


def read(video: Path, frames: Frames, wanted: Mapping[str, Wanted]) -> Media:
    """Key frames and side-channels. UserError: an unreadable video, or side-channel file."""
    clip = read_clip(video, frames)
    found = None if video.is_dir() else info(video)
    return Media(clip, found, {name: _side(name, side) for name, side in wanted.items()})


def _side(name: str, side: Wanted) -> Any:
    if not side.own and is_features(side.path):
        return side.load(side.path)
    if side.read is None:
        raise UserError(f"{side.path}: no encoder makes {name} features of it; give features, or sides.{name}.encoder")
    try:
        return side.read(side.path)
    except UserError as error:
        if side.own:
            return error
        raise


def is_features(file: Path) -> bool:
    """Whether a file or folder holds ready features: published (.pt), or ours, by how safetensors begin."""
    if file.is_dir():
        return any(file.glob("*.safetensors")) or any(file.glob("*.pt"))
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    with file.open("rb") as handle:
        return file.suffix == ".pt" or handle.read(9)[8:] == b"{"


def read_guarded(video: Path, frames: Frames, wanted: Mapping[str, Wanted], limits: Limits) -> bytes:
    """The same for files of strangers, pickled. Refused: another kind of file, too long, too large."""
    check(video, limits)
    with ExitStack() as stack:
        sides = {
            name: side if side.own else side._replace(path=stack.enter_context(checked(side.path, limits)))
            for name, side in wanted.items()
        }
        # As bytes: torch would send tensors through a socket in a folder, which stays when this process is killed.
        return pickle.dumps(read(video, frames, sides))


@contextmanager
def checked(path: Path, limits: Limits) -> Iterator[Path]:
    """Yields the file of a side-channel, or the folder that it is a zip of. Refused: neither media nor features."""
    if untrusted_zip.is_zip(path):
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            yield untrusted_zip.unpack(path, Path(folder, path.stem), limits)
    else:
        if path.suffix == ".pt":
            raise Refused(415, f"{path}: features are taken as .safetensors; `pave demo --features` takes .pt")
        if not is_features(path):
            check(path, limits)
        yield path


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

        def read_there(video: Path, frames: Frames, wanted: Mapping[str, Wanted]) -> Media:
            future = pool.schedule(read_guarded, args=[video, frames, wanted, limits], timeout=limits.reading)
            try:
                return pickle.loads(future.result())
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
