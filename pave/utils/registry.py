"""Load plugins by module name: pave/sides/audio.py is the side `audio`, a dotted name is a user's own module."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Iterable
from types import ModuleType

from pave.types import UserError

PACKAGES = {"bases": "pave.models.bases", "sides": "pave.sides", "tasks": "pave.tasks"}
"""Package of the plugins of each kind."""


def names(kind: str) -> list[str]:
    """List pave's own plugins of a kind (`sides`, `bases`, `tasks`) without importing them."""
    package = importlib.import_module(PACKAGES[kind])
    modules = [module.name for module in pkgutil.iter_modules(package.__path__) if not module.ispkg]
    return sorted(name for name in modules if name != "base" and not name.startswith("_"))


def is_shipped(kind: str, name: str) -> bool:
    """Whether a name can only mean a plugin of pave; a name without a dot is searched nowhere else."""
    return "." not in name or name.removeprefix(f"{PACKAGES[kind]}.") in names(kind)


def nearest(name: str, allowed: Iterable[str]) -> str:
    """The end of an error message: the most similar allowed name, or all of them."""
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
