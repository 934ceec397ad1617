"""Tasks and their questions of the fixtures."""

from __future__ import annotations

from helpers.paths import FIXTURES
from pave.tasks.base import get_task
from pave.types import Question


def load_fixture(name: str, split: str) -> list[Question]:
    """Questions of a split of the tiny annotations in tests/fixtures."""
    return get_task(name).load(split, FIXTURES / name)
