"""Reading files of strangers: their kind is checked first, then a separate process decodes them."""

from __future__ import annotations

import multiprocessing
import pickle
import resource
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import TimeoutError
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import av

from pave.inference import untrusted_zip
from pave.inference.limits import Limits, RequestRefused
from pave.media.frame_sampling import FrameSampling
from pave.media.video import VideoInfo, read_clip, read_info
from pave.media.worker_pool import one_thread_per_process
from pave.types import Clip, SideTokens, UserError

ALLOWED_FORMATS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "mpegts", "wav", "mp3", "flac", "ogg", "aac")
"""Containers that hold their own streams; others, such as playlists, can name files of this machine."""
MAX_MEMORY = 8 << 30
"""Bytes that a decoding process may allocate."""


class SideRequest(NamedTuple):
    """One side-channel to read."""

    path: Path
    load: Callable[[Path], SideTokens]
    """Loads feature files."""
    read: Callable[[Path], object] | None
    """Reads media for the encoder; None where there is no encoder."""
    from_video: bool = False
    """Whether `path` is the video, which may lack the side-channel; a file of its own must hold it."""


class Media(NamedTuple):
    """Everything that was read for one video."""

    clip: Clip
    info: VideoInfo | None
    """None for a folder of pictures."""
    sides: dict[str, object]
    """SideTokens; the encoder's inputs; or a UserError that says why the video has no such side-channel."""


MediaReader = Callable[[Path, FrameSampling, Mapping[str, SideRequest]], Media]
"""Reads a video's key frames and its side-channels."""


def read(video: Path, frames: FrameSampling, requests: Mapping[str, SideRequest]) -> Media:
    """Read key frames and side-channels in this process. Raises UserError for an unreadable video or side file."""
    clip = read_clip(video, frames)
    video_info = None if video.is_dir() else read_info(video)
    return Media(clip, video_info, {name: _read_side(name, request) for name, request in requests.items()})


def _read_side(name: str, request: SideRequest) -> object:
    """One entry of `Media.sides`."""
    path = request.path
    if not request.from_video and is_features(path):
        return request.load(path)
    if request.read is None:
        raise UserError(f"{path}: no encoder makes {name} features of it; give features, or sides.{name}.encoder")

    try:
        return request.read(path)
    except UserError as error:
        if request.from_video:
            return error
        raise


def is_features(path: Path) -> bool:
    """Whether a file or folder holds features: official (.pt), or ours, by how a safetensors file begins."""
    if path.is_dir():
        return any(path.glob("*.safetensors")) or any(path.glob("*.pt"))
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    with path.open("rb") as file:
        return path.suffix == ".pt" or file.read(9)[8:] == b"{"


def read_untrusted(video: Path, frames: FrameSampling, requests: Mapping[str, SideRequest], limits: Limits) -> bytes:
    """Check files of strangers, then read them -> pickled Media. Raises RequestRefused for a wrong kind or size."""
    check_media(video, limits)
    with ExitStack() as stack:
        checked = {}
        for name, request in requests.items():
            # The video is checked already.
            if not request.from_video:
                request = request._replace(path=stack.enter_context(checked_side_file(request.path, limits)))
            checked[name] = request

        # As bytes: torch would send tensors through a socket in a folder, which stays when this process is killed.
        return pickle.dumps(read(video, frames, checked))


@contextmanager
def checked_side_file(path: Path, limits: Limits) -> Iterator[Path]:
    """Yield a checked side-channel file, or the unpacked folder of a zip. Raises RequestRefused for other files."""
    if untrusted_zip.is_zip(path):
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            yield untrusted_zip.unpack(path, Path(folder, path.stem), limits)
        return

    if path.suffix == ".pt":
        raise RequestRefused(415, f"{path}: features are taken as .safetensors; `pave demo --features` takes .pt")
    if not is_features(path):
        check_media(path, limits)
    yield path


def check_media(path: Path, limits: Limits) -> None:
    """Raise RequestRefused unless a file is a video or sound file of a known container, within limits."""
    # Through a file object and without protocols nothing but this very file can be opened.
    options = {"protocol_whitelist": "data"}
    try:
        with path.open("rb") as file, av.open(file, "r", options=options, metadata_errors="ignore") as container:
            if container.format.name not in ALLOWED_FORMATS:
                kind = container.format.name
                raise RequestRefused(415, f"{path}: is {kind}; send mp4, mov, webm, mkv, avi or a sound file")

            sizes = [stream.width * stream.height for stream in container.streams.video]
            if max(sizes, default=0) > limits.max_pixels:
                raise RequestRefused(
                    413, f"{path}: frames of {max(sizes)} pixels, at most {limits.max_pixels}; scale it down"
                )

            # The length comes from the packets, since a header may lie; and a recording may begin at any time.
            times = [
                (float(packet.pts * packet.time_base), float((packet.pts + (packet.duration or 0)) * packet.time_base))
                for packet in container.demux()
                if packet.pts is not None and packet.time_base
            ]
    except av.FFmpegError as error:
        problem = f"damaged, cut off, or no video or sound: {error.strerror}"
        raise RequestRefused(415, f"{path}: {problem}; send another file") from error

    seconds = max((end for _, end in times), default=0.0) - min((start for start, _ in times), default=0.0)
    if seconds > limits.max_seconds:
        raise RequestRefused(413, f"{path}: {seconds:.0f} s long, at most {limits.max_seconds:g} s; cut it")


@contextmanager
def guarded_reader(limits: Limits) -> Iterator[MediaReader]:
    """Yield a reader for files of strangers: its one process may hang or die without harm to this one."""
    from pebble import ProcessExpired, ProcessPool

    context = multiprocessing.get_context("spawn")
    with one_thread_per_process(), ProcessPool(1, context=context, initializer=_limit_memory) as pool:

        def read_in_pool(video: Path, frames: FrameSampling, requests: Mapping[str, SideRequest]) -> Media:
            arguments = [video, frames, requests, limits]
            future = pool.schedule(read_untrusted, args=arguments, timeout=limits.decode_seconds)
            try:
                return pickle.loads(future.result())
            except TimeoutError as error:
                seconds = f"{limits.decode_seconds:g} s"
                raise RequestRefused(422, f"{video}: decoding took over {seconds}; convert or cut it") from error
            except (ProcessExpired, MemoryError) as error:
                raise RequestRefused(422, f"{video}: decoding it failed ({error}); convert it") from error

        try:
            yield read_in_pool
        finally:
            pool.stop()


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_MEMORY, MAX_MEMORY))
