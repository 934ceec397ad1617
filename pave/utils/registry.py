"""The module name is the registry: pave/sides/audio.py is the side `audio`; a dotted name loads a user's own module."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Iterable
from types import ModuleType

from pave.types import UserError

PACKAGES = {"bases": "pave.models.bases", "sides": "pave.sides", "tasks": "pave.tasks"}
"""Where the plugins of each kind are."""


def names(kind: str) -> list[str]:
    """Sorted names of all built-in plugins of a kind (`sides`, `bases`, `tasks`); imports none of them."""
    package = importlib.import_module(PACKAGES[kind])
    modules = [m.name for m in pkgutil.iter_modules(package.__path__) if not m.ispkg]
    return sorted(name for name in modules if name != "base" and not name.startswith("_"))


def is_shipped(kind: str, name: str) -> bool:
    """Whether a name can only mean a plugin of pave itself; a name without a dot is looked for nowhere else."""
    return "." not in name or name.removeprefix(f"pave.{kind}.") in names(kind)


def nearest(name: str, allowed: Iterable[str]) -> str:
    """The end of an error message: the closest allowed name, or all of them."""
    allowed = sorted(allowed)
    close = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(allowed)}"


def load(kind: str, name: str) -> ModuleType:
    """Import plugin `name`; an error inside the plugin comes through untouched. Raises UserError if there is none."""
    if "." in name:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name and f"{name}.".startswith(f"{error.name}."):
                raise UserError(
                    f"no module '{name}': '{error.name}' is not there; is its folder on PYTHONPATH?"
                ) from error
            raise
    if name not in names(kind):
        raise UserError(f"no {kind[:-1]} named '{name}'; {nearest(name, names(kind))}")
    return importlib.import_module(f"{PACKAGES[kind]}.{name}")
