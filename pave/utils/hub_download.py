"""Folders of the model hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from pave.types import UserError


def folder(name: str, expected: str, patterns: Sequence[str]) -> Path:
    """A local folder, or the hub's copy of a name like org/name. UserError: neither, or no way to the hub."""
    if Path(name).is_dir():
        return Path(name)
    if name.count("/") != 1 or name.startswith((".", "/")):
        raise UserError(f"{name}: no such folder; expected {expected} or a hub name like org/name")
    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{name}: not a folder, and not to be had from the hub: {reason}; give a local folder"
        ) from error
