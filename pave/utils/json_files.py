"""Read JSON files: a missing, damaged or foreign file ends in a UserError of one line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from pave.types import UserError

T = TypeVar("T")


def read_json(file: Path, expected: str, required: Iterable[str] = ()) -> dict[str, Any]:
    """Read a file that holds one JSON object with the keys `required`.

    Raises UserError, which ends with "expected `expected`", for any other file.
    """
    content = read_json_value(file, expected)
    if not isinstance(content, dict):
        raise UserError(f"{file}: holds a {type(content).__name__}, expected one JSON object: {expected}")

    missing = [key for key in required if key not in content]
    if missing:
        raise UserError(f"{file}: has no '{missing[0]}'; expected {expected}")
    return content


def read_json_value(file: Path, expected: str) -> Any:
    """Read a file that holds any JSON value. Raises UserError, as `read_json`."""
    if not file.is_file():
        raise UserError(f"{file}: no such file; expected {expected}")
    try:
        return json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not valid JSON ({error}); expected {expected}") from error


def read_jsonl(
    file: Path, expected: str, parse: Callable[[dict[str, Any]], T], allow_partial_last_line: bool = False
) -> list[T]:
    """Read a file with one JSON object a line, each made into a record by `parse`.

    `parse` raises ValueError, KeyError or TypeError for an object of another kind. With `allow_partial_last_line`, a
    last line without a line break, as a killed process leaves it, is left out where it cannot be read.
    Raises UserError with file, line number and "expected `expected`".
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file; expected lines of {expected}")

    # Not splitlines: a text may hold any of the line breaks that Unicode knows.
    *lines, last_line = file.read_bytes().split(b"\n")
    if last_line:
        lines.append(last_line)

    records: list[T] = []
    for number, line in enumerate(lines, start=1):
        try:
            content = json.loads(line)
            if not isinstance(content, dict):
                raise TypeError(f"a {type(content).__name__} instead of an object")
            records.append(parse(content))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if allow_partial_last_line and last_line and number == len(lines):
                break
            raise UserError(f"{file}:{number}: cannot be read ({error!r}); expected {expected}") from error
    return records
