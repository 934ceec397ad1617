"""Unpacks the zip of a checkpoint, ours or an official one."""

from __future__ import annotations

import shutil
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from huggingface_hub.utils import WeakFileLock

from pave.checkpoints.official_reader import PATCH_FILES
from pave.checkpoints.patch_folder import CONFIG_FILE
from pave.types import UserError
from pave.utils.atomic import atomic_folder

MARKERS = {**dict.fromkeys(PATCH_FILES, "config.json"), CONFIG_FILE: CONFIG_FILE}
"""Files that tell a checkpoint, and the file that must stand beside each."""


def checkpoint_folder(path: Path) -> Path:
    """The folder of a checkpoint: `path` itself, or where its zip is unpacked, beside it. Raises UserError."""
    if path.suffix != ".zip":
        return path
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected the zip of a checkpoint")

    folder = path.with_suffix("")
    # Several processes of one evaluation ask at the same time; one of them unpacks.
    with WeakFileLock(path.with_name(f".{path.name}.lock")):
        if not folder.exists():
            with atomic_folder(folder) as temporary:
                unpack_checkpoint(path, temporary)
    return folder


def unpack_checkpoint(file: Path, folder: Path) -> None:
    """Unpack the checkpoint's files, and nothing else of the zip, into `folder` under their bare names.

    Raises UserError for a damaged zip, one without exactly one checkpoint, and for names that leave the folder.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            for member in _checkpoint_members(file, archive):
                with archive.open(member) as source, open(folder / PurePosixPath(member).name, "xb") as target:
                    shutil.copyfileobj(source, target)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{file}: not a whole zip file: {error}; get it again, or unpack it by hand") from error


def _checkpoint_members(file: Path, archive: zipfile.ZipFile) -> list[str]:
    """Members of the outermost folder that holds a checkpoint; intermediate ones of the training lie deeper."""
    names = [PurePosixPath(name) for name in archive.namelist() if not name.endswith("/")]
    unsafe = [name for name in names if name.is_absolute() or ".." in name.parts or "\\" in str(name)]
    if unsafe:
        raise UserError(f"{file}: its member '{unsafe[0]}' points out of the folder; nothing was unpacked")

    folders = {name.parent for name in names if name.name in MARKERS and name.parent / MARKERS[name.name] in names}
    smallest_depth = min((len(folder.parts) for folder in folders), default=0)
    outermost = [folder for folder in folders if len(folder.parts) == smallest_depth]
    if len(outermost) != 1:
        raise UserError(
            f"{file}: has {len(outermost)} folders with {' or '.join(MARKERS)}; "
            "expected one, in the official layout with config.json beside it; unpack it by hand"
        )
    return [str(name) for name in names if name.parent == outermost[0]]
