"""Adapting frozen video language models to new signals (PAVE, arXiv 2503.19794)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pave.api import Pave

__version__ = "0.2.0"
__all__ = ["Pave", "__version__"]


def __getattr__(name: str) -> Any:
    """`from pave import Pave`, imported only when asked for."""
    if name == "Pave":
        from pave.api import Pave

        return Pave
    raise AttributeError(f"module 'pave' has no attribute '{name}'")
