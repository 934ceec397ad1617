"""utils/tables.py: aligned columns; files whole or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pave.types import UserError
from pave.utils import tables

ROWS = [{"name": "a", "count": 1, "share": None}, {"name": "b, c", "count": 20, "share": 0.5}]


def test_text_starts_at_the_left_and_numbers_end_at_the_right() -> None:
    rows = [["name", "of", "n"], ["a", "text", "10"], ["long name", "b", ""]]
    assert tables.aligned(rows).split("\n") == ["name         of   n", "a          text  10", "long name     b"]
    assert tables.aligned(rows, text_columns=2).split("\n")[1] == "a          text  10"
    assert tables.aligned(rows, text_columns=2).split("\n")[0] == "name       of     n"


def test_markdown() -> None:
    assert tables.markdown(["a", "b"], [["1", "2"]]) == ["| a | b |", "| --- | --- |", "| 1 | 2 |"]


def test_files_of_rows(tmp_path: Path) -> None:
    tables.save(tmp_path / "rows.json", ROWS)
    assert json.loads((tmp_path / "rows.json").read_text()) == ROWS
    tables.save(tmp_path / "document.json", ROWS, {"rows": ROWS, "note": "x"})
    assert json.loads((tmp_path / "document.json").read_text())["note"] == "x"
    tables.save(tmp_path / "rows.csv", ROWS)
    assert (tmp_path / "rows.csv").read_text().splitlines() == ["name,count,share", "a,1,", '"b, c",20,0.5']
    with pytest.raises(UserError, match=r"rows\.txt: results are written as \.json or \.csv, not '\.txt'"):
        tables.save(tmp_path / "rows.txt", ROWS)
    assert {file.name for file in tmp_path.iterdir()} == {"rows.json", "document.json", "rows.csv"}
