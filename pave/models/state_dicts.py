"""Compare the names and shapes of two state dicts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from pave.types import UserError

Shapes = Mapping[str, tuple[int, ...]]


def shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a state."""
    return {name: tuple(x.shape) for name, x in state.items()}


def check_same(expected: Shapes, actual: Shapes, origin: Path) -> None:
    """Compare two tables of shapes. Raises UserError with the first name that is missing, extra or misshapen."""
    for names, problem in ((expected.keys() - actual, "is missing"), (actual.keys() - expected, "is not known")):
        if names:
            raise UserError(f"{origin}: tensor '{min(names)}' {problem} ({len(names)} such); is this the right base?")
    for name, shape in sorted(expected.items()):
        if actual[name] != shape:
            raise UserError(f"{origin}: tensor '{name}' has shape {actual[name]}, expected {shape}: another base?")
