"""Published feature files: one bare tensor each, in the type it was computed in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from pave.media import feature_files
from pave.types import UserError


def read(path: Path, fits: Callable[[tuple[int, ...]], bool], expected: str) -> Tensor:
    """The tensor of a .pt file, in float32. UserError: no such file, another content, or of a shape that does not fit.

    `expected` says in words which shapes fit.
    """
    x = feature_files.read_torch(path)
    found = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
    if not isinstance(x, Tensor) or not fits(tuple(x.shape)):
        raise UserError(f"{path}: holds {found}, expected a tensor {expected}; download it again")
    return x.detach().float()
