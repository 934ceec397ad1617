"""`pave fetch`: one official checkpoint from the hub, its checksum verified, into a folder of its own."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from huggingface_hub import HfFileSystem
from huggingface_hub.errors import HTTPError
from tqdm import tqdm

from pave.checkpoints import model_zoo
from pave.checkpoints.archive import unpack_checkpoint
from pave.types import UserError
from pave.utils.atomic import atomic_folder
from pave.utils.json_files import read_json

log = logging.getLogger(__name__)
SOURCE = "source.json"
"""In a fetched folder: which checkpoint it is, from where, and the checksum of its zip file."""
BLOCK = 2**24
"""Bytes read at once."""


class Remote(NamedTuple):
    """A zip file on the hub."""

    path: str
    """Begins with the name of the repository."""
    size: int
    sha256: str


def main(name: str, out: Path) -> None:
    """Fetch a checkpoint into the folder `out`; an interrupted download goes on where it stopped.

    Raises UserError for an unknown name, no way to the hub, a wrong checksum, a zip file of another kind.
    """
    model_zoo.find_checkpoint(name)
    if out.exists():
        if _fetched_name(out) != name:
            raise UserError(f"{out}: exists already and is not {name}; give another --out")
        log.info("%s is there already: %s", name, out)
        return

    try:
        remote, part = _download(name, out)
    except (OSError, HTTPError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{name}: cannot be fetched from {model_zoo.REPOSITORY} on the hub: {reason}; the same command goes on "
            f"where it stopped, or fetch it on a machine with a network and copy the folder to {out}"
        ) from error

    checksum = _sha256(part)
    if checksum != remote.sha256:
        part.unlink()
        raise UserError(
            f"{part}: sha256 {checksum}, but the hub states {remote.sha256}; it was deleted, run the command again"
        )

    with atomic_folder(out) as temporary:
        unpack_checkpoint(part, temporary)
        source = {"name": name, "path": remote.path, "sha256": remote.sha256}
        (temporary / SOURCE).write_text(json.dumps(source, indent=1))
    part.unlink()


def _fetched_name(folder: Path) -> str | None:
    """Which checkpoint a folder holds, if any."""
    file = folder / SOURCE
    return read_json(file, "what `pave fetch` wrote", ["name"])["name"] if file.is_file() else None


def _download(name: str, out: Path) -> tuple[Remote, Path]:
    """The zip file beside `out`, under a name of its own content, so that no other upload is continued with it."""
    # Not hf_hub_download: newer versions of it start anew after a break.
    hub = HfFileSystem()
    remote = _find_zip(hub, name)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.{remote.sha256[:12]}.zip")

    with (
        hub.open(remote.path, "rb", block_size=BLOCK, cache_type="none") as source,
        open(part, "ab") as target,
        tqdm(desc=name, total=remote.size, initial=target.tell(), unit="B", unit_scale=True) as bar,
    ):
        source.seek(min(target.tell(), remote.size))
        while block := source.read(BLOCK):
            target.write(block)
            bar.update(len(block))
    return remote, part


def _find_zip(hub: HfFileSystem, name: str) -> Remote:
    """The checkpoint's zip file, wherever in the repository it is."""
    files = hub.find(model_zoo.REPOSITORY, detail=True)
    assert isinstance(files, dict)
    matches = [info for path, info in files.items() if PurePosixPath(path).name == f"{name}.zip"]
    if len(matches) != 1 or not matches[0]["lfs"]:
        problem = "no checksum" if len(matches) == 1 else f"{len(matches)} files"
        raise UserError(
            f"{name}: {model_zoo.REPOSITORY} on the hub has {problem} for {name}.zip; expected one file with one"
        )
    return Remote(matches[0]["name"], matches[0]["size"], matches[0]["lfs"]["sha256"])


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as handle:
        while block := handle.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
