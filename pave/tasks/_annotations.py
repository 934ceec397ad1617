"""Read annotation files strictly: an error names the first unusable record and counts the others."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from pave.types import MissingAnnotations, Question, UserError
from pave.utils import video_tags
from pave.utils.json_files import read_json_value

T = TypeVar("T")
Record = object
"""One JSON value of an annotation file, of which nothing is known yet."""
EXPECTED = "this task's annotations; download it again"
TYPE_NAMES = {
    type(None): "nothing",
    str: "a text",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
    bool: "true or false",
}


def as_list(data: Record) -> list[Record]:
    """Records of a file that is one list. Raises ValueError."""
    if not isinstance(data, list):
        raise ValueError(f"found {TYPE_NAMES[type(data)]}, expected a list")
    return data


def list_under(name: str) -> Callable[[Record], list[Record]]:
    """For a file that is an object with the list of records as this member."""
    return partial(field, name=name, kind=list)


def read_questions(
    file: Path,
    parse_record: Callable[[Record], Iterable[Question]],
    list_records: Callable[[Record], Sequence[Record]] = as_list,
) -> list[Question]:
    """Read the questions of an annotation file and make their ids unique; errors as of `read_records`."""
    return unique_ids(read_records(file, parse_record, list_records))


def read_question_files(parsers: Mapping[Path, Callable[[Record], Iterable[Question]]]) -> list[Question]:
    """Read the questions of several files, each with its parser of a record, and make their ids unique."""
    return unique_ids([question for file, parse in parsers.items() for question in read_records(file, parse)])


def read_records(
    file: Path,
    parse_record: Callable[[Record], Iterable[T]],
    list_records: Callable[[Record], Sequence[Record]] = as_list,
) -> list[T]:
    """Parse every record that `list_records` finds in a JSON file; both functions raise ValueError for wrong data.

    Raises UserError for a missing file, one that is not such JSON, or unusable records: the first by number, and how
    many there are.
    """
    if not annotations_exist(file):
        raise MissingAnnotations(
            f"{file}: no such annotation file; download it there (the task's header names the files)"
        )
    content = read_file(file)
    try:
        records = list_records(content)
    except ValueError as error:
        raise UserError(f"{file}: not this task's annotations ({error}); download it again") from error

    parsed: list[T] = []
    problems: list[str] = []
    for number, record in enumerate(records, start=1):
        try:
            parsed += parse_record(record)
        except ValueError as error:
            problems.append(f"record {number} {error}")
    if problems:
        count = f"{len(problems)} of {len(records)} records are unusable"
        raise UserError(f"{file}: {problems[0]} ({count}); correct the file")
    return parsed


def annotations_exist(file: Path) -> bool:
    """Whether an annotation file is there, as downloaded or converted from parquet."""
    return file.is_file() or (file.suffix == ".parquet" and file.with_suffix(".json").is_file())


def read_file(file: Path) -> Record:
    """Content of a JSON file; of a .jsonl file its lines, of a .parquet file its rows, or the .json file beside it.

    Raises UserError for broken JSON, or where nothing can read parquet.
    """
    if file.suffix == ".jsonl":
        try:
            return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        except ValueError as error:
            raise UserError(f"{file}: not valid JSON ({error}); expected {EXPECTED}") from error
    if file.suffix != ".parquet":
        return read_json_value(file, EXPECTED)

    converted = file.with_suffix(".json")
    if converted.is_file():
        return read_json_value(converted, EXPECTED)
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            f"{file}: parquet is read by pyarrow, which is not there; pip install pyarrow, or where pandas is: "
            f"pandas.read_parquet('{file.name}').to_json('{converted.name}', orient='records')"
        ) from error
    return pyarrow.parquet.read_table(file).to_pylist()


def has_field(record: Record, name: str) -> bool:
    """Whether a record is an object with this member."""
    return isinstance(record, dict) and name in record


def field(record: Record, name: str, kind: type[T]) -> T:
    """Member of a JSON object, of the type it must have. Raises ValueError."""
    if not isinstance(record, dict) or name not in record:
        raise ValueError(f"lacks '{name}'")
    value = record[name]
    if not isinstance(value, kind):
        raise ValueError(f"has {TYPE_NAMES[type(value)]} as '{name}', expected {TYPE_NAMES[kind]}")
    return value


def id_field(record: Record, name: str) -> str:
    """Member that is an id, which some files hold as a number. Raises ValueError."""
    if isinstance(record, dict) and isinstance(record.get(name), int):
        return str(record[name])
    return field(record, name, str)


def texts_field(record: Record, name: str) -> tuple[str, ...]:
    """Member that is a list of one or more texts. Raises ValueError."""
    texts = field(record, name, list)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"has {texts!r:.60} as '{name}', expected texts")
    return tuple(texts)


def conversation(record: Record) -> list[tuple[str, str]]:
    """(question, answer) turns of a training record of the LLaVA family, without its video's tag. Raises ValueError."""
    turns = field(record, "conversations", list)
    speakers = [field(turn, "from", str) for turn in turns]
    if not turns or speakers != ["human", "gpt"] * (len(turns) // 2):
        raise ValueError(f"has turns of {speakers}, expected human and gpt in turn")

    texts = [field(turn, "value", str) for turn in turns]
    texts = video_tags.remove_video_tag(texts, texts[0])
    return list(zip(texts[::2], texts[1::2]))


def prepared_question(video_path: Callable[[str], str], record: Record) -> list[Question]:
    """Question of a training record that `pave prepare` or the official code made.

    `video_path` makes the path below root of the record's name of the video.
    """
    *history, (question, answer) = conversation(record)
    video = video_path(field(record, "video", str))
    return [Question(id_field(record, "id"), video, question, (answer,), history=tuple(history))]


def unique_ids(questions: Sequence[Question]) -> list[Question]:
    """Make ids unique: data sets repeat some with other content; the second `7` of a file becomes `7#2`."""
    counts: Counter[str] = Counter()
    unique = []
    for question in questions:
        counts[question.qid] += 1
        count = counts[question.qid]
        unique.append(question if count == 1 else replace(question, qid=f"{question.qid}#{count}"))
    return unique
