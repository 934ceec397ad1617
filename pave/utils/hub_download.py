"""Find a local folder, or download a folder from the model hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from pave.types import UserError


def find_folder(name: str, expected: str, patterns: Sequence[str]) -> Path:
    """Path of a local folder, or of the downloaded files of a hub name like org/name. Raises UserError for neither."""
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
