"""Unpacking a zip of strangers: a scene's pictures, depth and poses, or the features of several cameras."""

from __future__ import annotations

import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from PIL import Image

from pave.inference.limits import MEGABYTE, Limits, RequestRefused

MAGIC = b"PK\x03\x04"
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png")
ALLOWED_SUFFIXES = (*PICTURE_SUFFIXES, ".txt", ".json", ".safetensors")
ALLOWED_COMPRESSION = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Other methods may take any amount of memory to unpack."""
MAX_FILES = 10_000


def is_zip(path: Path) -> bool:
    """Whether a file begins as a zip does."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def unpack(archive: Path, folder: Path, limits: Limits) -> Path:
    """Unpack into a new folder; returns it, or the only folder in it.

    Raises RequestRefused for a damaged zip, too much data, unsafe names and files that no side-channel reads.
    """
    folder.mkdir(parents=True)
    remaining_bytes = limits.max_megabytes * MEGABYTE
    try:
        with zipfile.ZipFile(archive) as packed:
            for entry in _checked_entries(packed, archive):
                path = folder / entry.filename
                path.parent.mkdir(parents=True, exist_ok=True)

                # Counted while unpacking, since the size that an entry states may be a lie.
                with packed.open(entry) as source, path.open("xb") as target:
                    while chunk := source.read(MEGABYTE):
                        remaining_bytes -= len(chunk)
                        if remaining_bytes < 0:
                            size = f"{limits.max_megabytes} MB"
                            raise RequestRefused(413, f"{archive}: over {size} when unpacked; send less")
                        target.write(chunk)

                if path.suffix.lower() in PICTURE_SUFFIXES:
                    _check_picture(path, limits)
    except (zipfile.BadZipFile, zlib.error, EOFError, UnicodeDecodeError, OSError) as error:
        raise RequestRefused(415, f"{archive}: a zip that cannot be unpacked: {error}; zip the folder again") from error

    # People zip the folder itself, at times several levels deep.
    while len(children := list(folder.iterdir())) == 1 and children[0].is_dir():
        folder = children[0]
    return folder


def _checked_entries(packed: zipfile.ZipFile, archive: Path) -> Iterator[zipfile.ZipInfo]:
    """Check and yield the files of a zip, without those that desktops add."""
    entries = packed.infolist()
    if len(entries) > MAX_FILES:
        raise RequestRefused(413, f"{archive}: {len(entries)} files, at most {MAX_FILES}; send fewer")

    for entry in entries:
        path = PurePosixPath(entry.filename)
        is_link = stat.S_ISLNK(entry.external_attr >> 16)
        if path.is_absolute() or ".." in path.parts or "\\" in entry.filename or is_link:
            raise RequestRefused(415, f"{archive}: a name or link that leads out of the zip; zip the folder itself")

        is_encrypted = entry.flag_bits & 1
        if is_encrypted or entry.compress_type not in ALLOWED_COMPRESSION:
            raise RequestRefused(415, f"{archive}: encrypted, or packed in an uncommon way; zip the folder again")

        if entry.is_dir() or any(part.startswith((".", "__MACOSX")) for part in path.parts):
            continue
        if path.suffix.lower() not in ALLOWED_SUFFIXES:
            allowed = ", ".join(ALLOWED_SUFFIXES)
            raise RequestRefused(415, f"{archive}: holds '{path.name[:40]}'; expected only {allowed}")
        yield entry


def _check_picture(path: Path, limits: Limits) -> None:
    """Raise RequestRefused unless a file is a JPEG or PNG within limits.

    Pillow could open further formats, whose decoders no stranger should reach.
    """
    with Image.open(path, formats=("JPEG", "PNG")) as image:
        width, height = image.size
    if width * height > limits.max_pixels:
        raise RequestRefused(413, f"{path}: {width * height} pixels, at most {limits.max_pixels}; scale it down")
