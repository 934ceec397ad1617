"""A folder that came as one zip, with a stranger's names: the views of a room, or features of several cameras."""

from __future__ import annotations

import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from PIL import Image

from pave.inference.limits import MEGA, Limits, Refused

MAGIC = b"PK\x03\x04"
PICTURES = (".jpg", ".jpeg", ".png")
KINDS = (*PICTURES, ".txt", ".json", ".safetensors")
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Others may take any amount of memory to unpack."""
MOST = 10_000
"""Files in a zip."""


def is_zip(file: Path) -> bool:
    """By how it begins."""
    with file.open("rb") as handle:
        return handle.read(len(MAGIC)) == MAGIC


def unpack(archive: Path, folder: Path, limits: Limits) -> Path:
    """Unpack into a new folder; returns it, or the only folder in it. Refused: too much, or other than such files."""
    folder.mkdir(parents=True)
    left = limits.megabytes * MEGA
    try:
        with zipfile.ZipFile(archive) as packed:
            for entry in _entries(packed, archive):
                file = folder / entry.filename
                file.parent.mkdir(parents=True, exist_ok=True)
                # What an entry states of its size need not be true.
                with packed.open(entry) as given, file.open("xb") as written:
                    while piece := given.read(MEGA):
                        left -= len(piece)
                        if left < 0:
                            raise Refused(413, f"{archive}: over {limits.megabytes} MB when unpacked; send less")
                        written.write(piece)
                if file.suffix.lower() in PICTURES:
                    _check_picture(file, limits)
    except (zipfile.BadZipFile, zlib.error, EOFError, UnicodeDecodeError, OSError) as error:
        raise Refused(415, f"{archive}: a zip that cannot be unpacked: {error}; zip the folder again") from error
    while len(inside := list(folder.iterdir())) == 1 and inside[0].is_dir():
        folder = inside[0]
    return folder


def _entries(packed: zipfile.ZipFile, archive: Path) -> Iterator[zipfile.ZipInfo]:
    """The files of a zip, without those that desktops add."""
    entries = packed.infolist()
    if len(entries) > MOST:
        raise Refused(413, f"{archive}: {len(entries)} files, at most {MOST}; send fewer")
    for entry in entries:
        path, linked = PurePosixPath(entry.filename), stat.S_ISLNK(entry.external_attr >> 16)
        if path.is_absolute() or ".." in path.parts or "\\" in entry.filename or linked:
            raise Refused(415, f"{archive}: a name or link that leads out of the zip; zip the folder itself")
        if entry.flag_bits & 1 or entry.compress_type not in METHODS:
            raise Refused(415, f"{archive}: encrypted, or packed in an uncommon way; zip the folder again")
        if entry.is_dir() or any(part.startswith((".", "__MACOSX")) for part in path.parts):
            continue
        if path.suffix.lower() not in KINDS:
            raise Refused(415, f"{archive}: holds '{path.name[:40]}'; expected only {', '.join(KINDS)}")
        yield entry


def _check_picture(file: Path, limits: Limits) -> None:
    """Refused unless it is what its name says, within limits; Pillow knows kinds that no stranger should send."""
    with Image.open(file, formats=("JPEG", "PNG")) as image:
        width, height = image.size
    if width * height > limits.pixels:
        raise Refused(413, f"{file}: {width * height} pixels, at most {limits.pixels}; scale it down")
