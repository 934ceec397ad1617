"""Fields of a request, each of the kind that it must be."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from pave.inference.limits import Limits, RequestRefused
from pave.inference.session import AnswerRequest
from pave.utils.registry import nearest

KINDS = {str: "text", int: "a whole number", bool: "true or false", list: "a list"}


def take(fields: dict[str, Any], name: str, kind: type, default: Any = None) -> Any:
    """A field taken out, or the default where it is not there or null. Refused: of another kind."""
    value = fields.pop(name, None)
    if value is None:
        return default
    if type(value) is not kind:
        raise RequestRefused(400, f"field '{name}': expected {KINDS[kind]}, found {type(value).__name__}")
    return value


def check_empty(fields: dict[str, Any], known: Collection[str]) -> None:
    """Refused where a field was not taken."""
    for name in fields:
        raise RequestRefused(400, f"unknown field '{name[:40]}'; {nearest(name, known)}")


def new_tokens(count: int, limits: Limits) -> int:
    """The longest answer asked for. Refused: more than is given."""
    if not 1 <= count <= limits.max_new_tokens:
        raise RequestRefused(400, f"answers of {count} tokens; expected 1 to {limits.max_new_tokens}")
    return count


def patches(fields: dict[str, Any]) -> tuple[str, ...] | None:
    """Names of those that are on; None: as the model is configured."""
    names = take(fields, "patches", list)
    if names is not None and not all(isinstance(name, str) for name in names):
        raise RequestRefused(400, "field 'patches': expected a list of names")
    return None if names is None else tuple(names)


def checked(ask: AnswerRequest, limits: Limits) -> AnswerRequest:
    """The same question. Refused: no text, or too much."""
    if not ask.question.strip():
        raise RequestRefused(400, "no question")
    size = len(ask.question) + sum(len(text) for turn in ask.history for text in turn)
    if size > limits.max_characters:
        raise RequestRefused(413, f"a conversation of {size} characters, at most {limits.max_characters}; begin a new one")
    return ask
