"""Checks of the fields of a request, shared by both endpoints and the page."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar

from pave.inference.limits import Limits, RequestRefused
from pave.inference.session import AnswerRequest
from pave.utils.registry import nearest

Fields = dict[str, object]
"""The fields of a request, by name, as JSON gave them."""
T = TypeVar("T")
D = TypeVar("D")

TYPE_NAMES = {str: "text", int: "a whole number", bool: "true or false", list: "a list"}
DEFAULT_NEW_TOKENS = 128


def take(fields: Fields, name: str, kind: type[T], default: D) -> T | D:
    """Remove a field and return its value, or the default for none or null. Raises RequestRefused for a wrong type."""
    value = fields.pop(name, None)
    if value is None:
        return default
    # Exactly this type: to Python, true is a whole number too.
    if type(value) is not kind or not isinstance(value, kind):
        actual = type(value).__name__
        raise RequestRefused(400, f"field '{name}': expected {TYPE_NAMES[kind]}, found {actual}")
    return value


def check_empty(fields: Fields, names: Collection[str]) -> None:
    """Raise RequestRefused where a field was not taken."""
    for name in fields:
        raise RequestRefused(400, f"unknown field '{name[:40]}'; {nearest(name, names)}")


def take_max_new_tokens(fields: Fields, names: Collection[str], limits: Limits) -> int:
    """Remove these fields and return the last that is set. Raises RequestRefused where it is out of range."""
    count = min(DEFAULT_NEW_TOKENS, limits.max_new_tokens)
    for name in names:
        count = take(fields, name, int, count)
    if not 1 <= count <= limits.max_new_tokens:
        raise RequestRefused(400, f"answers of {count} tokens; expected 1 to {limits.max_new_tokens}")
    return count


def take_patches(fields: Fields) -> tuple[str, ...] | None:
    """Remove the names of the patches that are on; None: as the model is configured."""
    names = take(fields, "patches", list, None)
    if names is None:
        return None
    if not all(isinstance(name, str) for name in names):
        raise RequestRefused(400, "field 'patches': expected a list of names")
    return tuple(names)


def check_text(request: AnswerRequest, limits: Limits) -> None:
    """Raise RequestRefused for an empty question, or too long a conversation."""
    if not request.question.strip():
        raise RequestRefused(400, "no question")
    size = len(request.question) + sum(len(text) for turn in request.history for text in turn)
    if size > limits.max_characters:
        raise RequestRefused(
            413, f"a conversation of {size} characters, at most {limits.max_characters}; begin a new one"
        )
