"""Loading a transformers class from a folder, and refusing settings that a base does not have; for several bases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pave.types import UserError


def refuse(path: str, name: str, newline: str, **settings: Any) -> None:
    """UserError where a config sets what a base without newlines and pooling does not have."""
    if newline != "no_token":
        raise UserError(f"{path}: base.newline={newline}, but {name} has no newline vectors; set base.newline=no_token")
    for field, value in settings.items():
        if value is not None:
            raise UserError(f"{path}: base.{field}={value}, but {name} has no such setting; leave base.{field} out")


def config(folder: Path, what: str) -> dict[str, Any]:
    """config.json of a folder. UserError: there is none."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no config.json in it; expected {what}")
    return json.loads((folder / "config.json").read_text())


def pretrained(kind: Any, folder: Path, what: str, **settings: Any) -> Any:
    """A model of class `kind` in eval mode. UserError: tensors missing, left over or of the wrong shape."""
    hf, info = kind.from_pretrained(
        folder,
        ignore_mismatched_sizes=True,  # they come back in `info` and end in our own error
        output_loading_info=True,
        **settings,
    )
    wrong = {problem: sorted(map(str, names))[:3] for problem, names in info.items() if names}
    if wrong:
        raise UserError(f"{folder}: not {what}: {wrong}; give the checkpoint as published")
    return hf.eval()
