"""What tests of `annotations` and others share."""

from __future__ import annotations

from types import ModuleType

from helpers.paths import FIXTURES
from pave.types import Question
from pave.utils import registry


def task(name: str) -> ModuleType:
    return registry.load("tasks", name)


def loaded(name: str, split: str) -> list[Question]:
    return task(name).load(split, FIXTURES / name)
