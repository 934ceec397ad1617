"""Official feature files: one bare tensor each, in the type it was computed in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from pave.media import feature_files
from pave.types import UserError


def read(path: Path, fits: Callable[[tuple[int, ...]], bool], expected: str) -> Tensor:
    """Read the tensor of a .pt file, in float32; `expected` says in words which shapes fit.

    Raises UserError: no such file, another content, a shape that does not fit.
    """
    x = feature_files.read_torch(path)
    if isinstance(x, Tensor) and fits(tuple(x.shape)):
        return x.detach().float()

    actual = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
    raise UserError(f"{path}: holds {actual}, expected a tensor {expected}; download it again")
