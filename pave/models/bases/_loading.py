"""Loading a transformers class from a folder, and refusing settings that a base does not have; for several bases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from pave.models.bases import _quantize
from pave.models.bases._quantize import Quantize
from pave.types import UserError

Newline = Literal["grid", "frame", "one_token", "no_token"]
Pool = Literal["bilinear", "average", "max"]


class Settings(NamedTuple):
    """How a base is loaded: the fields of BaseConfig that say it, where None is the base's own."""

    dtype: torch.dtype = torch.float32
    """Of the weights."""
    attention: str = "sdpa"
    """Kernel of the tower and the LLM."""
    quantize: Quantize = "none"
    newline: Newline | None = None
    pool: Pool | None = None
    vision_heads: int | None = None

    def given(self, whole: list[str]) -> dict[str, Any]:
        """Arguments of `from_pretrained`; the modules `whole` are never in few bits."""
        return {
            "dtype": self.dtype,
            "attn_implementation": self.attention,
            "quantization_config": _quantize.settings(self.quantize, self.dtype, whole),
        }


def refuse(path: str, name: str, how: Settings) -> None:
    """UserError where a config sets what a base without newlines and pooling does not have."""
    if how.newline not in ("no_token", None):
        raise UserError(
            f"{path}: base.newline={how.newline}, but {name} has no newline vectors; set base.newline=no_token"
        )
    for field, value in {"pool": how.pool, "vision_heads": how.vision_heads}.items():
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
