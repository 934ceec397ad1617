"""Reading annotation files: what is wrong is named, what is unusable is counted, nothing is left out in silence."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from pave.types import NotThere, Question, UserError
from pave.utils import placeholders
from pave.utils.registry import nearest

T = TypeVar("T")


def annotation(task: str, split: str, files: Mapping[str, str], root: Path) -> Path:
    """Where a split's annotations are. Raises UserError with the nearest name if there is no such split."""
    if split not in files:
        raise UserError(f"{task} has no split '{split}'; {nearest(split, files)}")
    return root / files[split]


def records(file: Path, unpack: Callable[[Any], Sequence[Any]], make: Callable[[Any], Iterable[T]]) -> list[T]:
    """What `make` makes of every record that `unpack` finds in a JSON file; both raise ValueError for what is wrong.

    Raises UserError for a missing file, one that is not such JSON, or unusable records: the first by number, and how
    many there are.
    """
    if not file.is_file() and not (file.suffix == ".parquet" and file.with_suffix(".json").is_file()):
        raise NotThere(f"{file}: no such annotation file; download it there (the task's header names the files)")
    try:
        given = unpack(parse(file))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{file}: not this task's annotations ({error}); download it again") from error
    found: list[T] = []
    bad: list[str] = []
    for number, record in enumerate(given, start=1):
        try:
            found += make(record)
        except ValueError as error:
            bad.append(f"record {number} {error}")
    if bad:
        raise UserError(f"{file}: {bad[0]} ({len(bad)} of {len(given)} records are unusable); correct the file")
    return found


def parse(file: Path) -> Any:
    """What a JSON file holds; of a .jsonl file its lines, of a .parquet file its rows, or the .json file beside it.

    Raises ValueError for broken JSON, UserError where nothing can read parquet.
    """
    if file.suffix == ".jsonl":
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if file.suffix != ".parquet":
        return json.loads(file.read_text(encoding="utf-8"))
    converted = file.with_suffix(".json")
    if converted.is_file():
        return json.loads(converted.read_text(encoding="utf-8"))
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            f"{file}: parquet is read by pyarrow, which is not there; pip install pyarrow, or where pandas is: "
            f"pandas.read_parquet('{file.name}').to_json('{converted.name}', orient='records')"
        ) from error
    return pyarrow.parquet.read_table(file).to_pylist()


def rows(data: Any) -> list[Any]:
    """For `records`: the file is one list."""
    if not isinstance(data, list):
        raise ValueError(f"found {_kind(data)}, expected a list")
    return data


def field(record: Any, name: str, kind: type[T]) -> T:
    """A member of a JSON object, of the kind it must have. Raises ValueError."""
    if not isinstance(record, dict) or name not in record:
        raise ValueError(f"lacks '{name}'")
    if not isinstance(record[name], kind):
        raise ValueError(f"has {_kind(record[name])} as '{name}', expected {_kind(kind())}")
    return record[name]


def ident(record: Any, name: str) -> str:
    """A member that is an id, which some files hold as a number. Raises ValueError."""
    if isinstance(record, dict) and isinstance(record.get(name), int):
        return str(record[name])
    return field(record, name, str)


def texts(record: Any, name: str) -> tuple[str, ...]:
    """A member that is a list of one or more texts. Raises ValueError."""
    found = field(record, name, list)
    if not found or not all(isinstance(text, str) for text in found):
        raise ValueError(f"has {found!r:.60} as '{name}', expected texts")
    return tuple(found)


def turns(record: Any) -> list[tuple[str, str]]:
    """(question, answer) of a training record of the LLaVA family, without its video's tag. Raises ValueError."""
    found = field(record, "conversations", list)
    speakers = [field(turn, "from", str) for turn in found]
    if not found or speakers != ["human", "gpt"] * (len(found) // 2):
        raise ValueError(f"has turns of {speakers}, expected human and gpt in turn")
    said = [field(turn, "value", str) for turn in found]
    said = placeholders.bare(said, said[0])
    return list(zip(said[::2], said[1::2]))


def prepared(place: Callable[[str], str], record: Any) -> list[Question]:
    """The question of a record that `pave prepare` or the release made; `place` says where the video is."""
    *history, (question, answer) = turns(record)
    video = place(field(record, "video", str))
    return [Question(ident(record, "id"), video, question, (answer,), history=tuple(history))]


def numbered(found: Sequence[Question]) -> list[Question]:
    """Unique ids: data sets repeat some with other content; the second `7` becomes `7#2`, in the order of the file."""
    seen: Counter[str] = Counter()
    unique = []
    for question in found:
        seen[question.qid] += 1
        count = seen[question.qid]
        unique.append(question if count == 1 else replace(question, qid=f"{question.qid}#{count}"))
    return unique


def _kind(value: Any) -> str:
    names = {
        str: "a text",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
        bool: "true or false",
    }
    return "nothing" if value is None else names[type(value)]
