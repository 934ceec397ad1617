"""Names and shapes of two state dicts, compared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from pave.types import UserError


def shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a state."""
    return {name: tuple(x.shape) for name, x in state.items()}


def check_same(wanted: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]], origin: Path) -> None:
    """Two tables of shapes must agree. Raises UserError with the first name that is missing, extra or misshapen."""
    for problem, strange in (
        ("is missing", wanted.keys() - given.keys()),
        ("is not known", given.keys() - wanted.keys()),
    ):
        if strange:
            raise UserError(
                f"{origin}: tensor '{min(strange)}' {problem} ({len(strange)} such); is this the right base?"
            )
    for name, shape in sorted(wanted.items()):
        if tuple(given[name]) != tuple(shape):
            found, expected = tuple(given[name]), tuple(shape)
            raise UserError(f"{origin}: tensor '{name}' has shape {found}, expected {expected}: another base?")
