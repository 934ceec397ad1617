"""Open a media file, with one clear error for each thing that can be wrong with it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

import av
from av.container import InputContainer
from av.stream import Disposition, Stream

from pave.types import UserError

SIZE_TOLERANCE = 8
"""Bytes: some writers state the length of a RIFF file 1 or 8 bytes too long."""
MP4_BOXES = (b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"wide", b"free", b"skip")
"""One of them is the first box of an MP4 or MOV file."""
StreamT = TypeVar("StreamT", bound=Stream)


@contextmanager
def open_media(path: Path) -> Iterator[InputContainer]:
    """Open a media file. Raises UserError: no such file, cut off, unreadable; or damaged, while it is open."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    actual, expected = path.stat().st_size, stated_size(path)
    if expected > actual + SIZE_TOLERANCE:
        raise UserError(f"{path}: cut off: its header states {expected} bytes, found {actual}; copy it again")

    try:
        # Old cameras write tags that are not UTF-8, which must not stop us.
        with av.open(path, metadata_errors="ignore") as container:
            yield container
    except av.FFmpegError as error:
        raise UserError(f"{path}: damaged, cut off or no media: {error.strerror}; copy or convert it again") from error


def first_stream(streams: tuple[StreamT, ...], path: Path, kind: str) -> StreamT:
    """The first stream that is not a cover picture. Raises UserError if there is none."""
    for stream in streams:
        if not stream.disposition & Disposition.attached_pic:
            return stream
    raise UserError(f"{path}: has no {kind} track; give a file with one")


def stated_size(path: Path) -> int:
    """Read how many bytes a file states to have (MP4, RIFF, Matroska, FLV); 0 where its format states none."""
    with path.open("rb") as file:
        head = file.read(12)
        if head[:4] == b"RIFF":
            size = int.from_bytes(head[4:8], "little")
            return 0 if size == 0xFFFFFFFF else size + 8
        if head[:4] == b"\x1a\x45\xdf\xa3":
            return _matroska_size(file)
        if head[:3] == b"FLV":
            return _flv_size(file)
        return _mp4_size(file) if head[4:8] in MP4_BOXES else 0


def _mp4_size(file: BinaryIO) -> int:
    """End of the last MP4 box that holds media; trailing bytes that are no box are not counted."""
    start = end = 0
    while True:
        file.seek(start)
        head = file.read(16)
        if len(head) < 8:
            return end
        size, name = struct.unpack(">I4s", head[:8])
        if size == 1 and len(head) == 16:  # the size did not fit in four bytes and follows in eight
            size = int.from_bytes(head[8:], "big")
        if size < 8:  # 0: the box goes on to the end of the file
            return end
        start += size
        if name in (b"moov", b"moof", b"mdat"):
            end = start


def _matroska_size(file: BinaryIO) -> int:
    """End of the segment that follows the EBML header; 0 for a live stream, which states no length."""
    file.seek(4)
    file.seek(_variable_int(file) or 0, 1)
    if file.read(4) != b"\x18\x53\x80\x67":
        return 0
    size = _variable_int(file)
    return 0 if size is None else file.tell() + size


def _flv_size(file: BinaryIO) -> int:
    """The number `filesize` of the first tag; without it, as in a live stream, 0."""
    file.seek(0)
    name = b"\0\x08filesize\0"  # length of the name, name, type of a number
    _, separator, value = file.read(4096).partition(name)
    return int(struct.unpack(">d", value[:8])[0]) if separator and len(value) >= 8 else 0


def _variable_int(file: BinaryIO) -> int | None:
    """An EBML integer: leading zero bits count the bytes that follow; all ones (None) means unknown."""
    first_byte = file.read(1)
    if not first_byte or not first_byte[0]:
        return None
    length = 9 - first_byte[0].bit_length()
    all_ones = (1 << 7 * length) - 1
    value = int.from_bytes(first_byte + file.read(length - 1), "big") & all_ones
    return None if value == all_ones else value
