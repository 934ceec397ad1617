"""Tables of results: aligned text, Markdown, .json and .csv files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pave.types import UserError
from pave.utils.atomic import write_text


def aligned(rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """Lines of equally wide columns: the first `text_columns` start at the left, the others end at the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if i < text_columns else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def save(file: Path, rows: Sequence[Mapping[str, Any]], document: Mapping[str, Any] | None = None) -> None:
    """Write rows as .json (or `document` instead, where there is more than the rows) or as .csv.

    Raises UserError for another ending.
    """
    if file.suffix == ".json":
        text = json.dumps(rows if document is None else document, indent=1)
    elif file.suffix == ".csv":
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        text = buffer.getvalue()
    else:
        raise UserError(f"{file}: results are written as .json or .csv, not '{file.suffix}'")

    write_text(file, text)
