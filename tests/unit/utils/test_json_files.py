"""utils/json_files.py: every damaged or foreign file ends in one line that names it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pave.checkpoints import build
from pave.config import BaseConfig
from pave.evaluation import run_folder
from pave.types import UserError
from pave.utils.json_files import read_json, read_json_value, read_jsonl


def test_an_object_and_any_value(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"größe": 3}', encoding="utf-8")
    assert read_json(file, "settings", required=["größe"]) == {"größe": 3}
    file.write_text("[1]")
    assert read_json_value(file, "settings") == [1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file; expected settings"),
        (b"", "not valid JSON .*; expected settings"),
        (b'{"a": 1', "not valid JSON .*; expected settings"),
        (b"\xff\xfe\x00", "not valid JSON .*; expected settings"),
        (b"[" * 100_000, "not valid JSON .*; expected settings"),
        (b"[]", "holds a list, expected one JSON object: settings"),
        (b'{"a": 1}', "has no 'b'; expected settings"),
    ],
)
def test_other_files_end_in_one_line(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "config.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=rf"config\.json: {message}") as error:
        read_json(file, "settings", required=["a", "b"])
    assert "\n" not in str(error.value)


def text_of(line: dict[str, Any]) -> str:
    if not isinstance(line["text"], str):
        raise TypeError("text must be a string")
    return line["text"]


def test_lines(tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    file.write_text('{"text": "a\u2028b"}\n{"text": "c"}\n', encoding="utf-8")
    assert read_jsonl(file, "records", text_of) == ["a\u2028b", "c"]
    file.write_bytes(b"")
    assert read_jsonl(file, "records", text_of) == []


@pytest.mark.parametrize("broken", ["{", "", "[]", "{}", '{"text": 1}'])
def test_a_broken_line_is_named(tmp_path: Path, broken: str) -> None:
    file = tmp_path / "records.jsonl"
    for rest in ("", '{"text": "b"}\n'):
        file.write_text(f'{{"text": "a"}}\n{broken}\n{rest}')
        with pytest.raises(UserError, match=r"records\.jsonl:2: cannot be read .*; expected records"):
            read_jsonl(file, "records", text_of, allow_partial_last_line=True)


def test_only_an_unfinished_last_line_may_be_left_out(tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    file.write_bytes('{"text": "a"}\n{"text": "ü'.encode()[:-1])
    assert read_jsonl(file, "records", text_of, allow_partial_last_line=True) == ["a"]
    with pytest.raises(UserError, match=r"records\.jsonl:2"):
        read_jsonl(file, "records", text_of)
    file.write_text('{"text": "a"}\n{"text": "b"}')
    assert read_jsonl(file, "records", text_of, allow_partial_last_line=True) == ["a", "b"]


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_damaged_config_or_metrics_file_is_named(tmp_path: Path, content: str) -> None:
    for name in ("config.json", run_folder.METRICS):
        (tmp_path / name).write_text(content)
    readers: dict[str, Callable[[], object]] = {
        "config.json": lambda: build.load_base(BaseConfig("qwen2_5_vl", str(tmp_path), newline="no_token")),
        run_folder.METRICS: lambda: run_folder.read_metrics(tmp_path),
    }
    for name, read in readers.items():
        with pytest.raises(UserError, match=re.escape(name)) as error:
            read()
        assert "\n" not in str(error.value)
