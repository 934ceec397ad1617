"""Annotation files of the benchmarks with short free answers, in their two layouts, and where their videos are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from pave.tasks._annotations import Record, field, has_field, id_field, read_questions, read_records, unique_ids
from pave.types import Question, UserError

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".gif")
"""Of two files with one stem the first of these counts."""
QUESTION_WORDS = ("what", "who", "how", "when", "where")
"""First words of questions, by which they are grouped."""
VideoPath = Callable[[str], str]
"""From a video's name to its path below root."""


def video_finder(root: Path, folder: str, default_suffix: str) -> VideoPath:
    """Find videos by name: with the suffix of the file that is there, `default_suffix` for one that is missing."""
    files = [file for file in (root / folder).glob("*") if file.suffix.lower() in VIDEO_SUFFIXES]
    # The preferred suffix comes last, so that it overwrites the others in the dictionary.
    files.sort(key=lambda file: VIDEO_SUFFIXES.index(file.suffix.lower()), reverse=True)
    names = {file.stem: file.name for file in files}

    def video_path(name: str) -> str:
        has_suffix = Path(name).suffix.lower() in VIDEO_SUFFIXES
        return f"{folder}/{name if has_suffix else names.get(name, name + default_suffix)}"

    return video_path


def question_word(record: Record) -> str:
    """Group of a question: its first word."""
    word = field(record, "question", str).lower().partition(" ")[0]
    return word if word in QUESTION_WORDS else ""


def read_two_files(
    question_file: Path, answer_file: Path, video_path: VideoPath, answer_group: Callable[[Record], str] | None = None
) -> list[Question]:
    """Read a list of {video_name, question, question_id} and one of {answer} in the same order, with ids or without.

    `answer_group` finds the group in an answer's record; without it the group is the question's first word. Raises
    UserError.
    """

    def parse_question(record: Record) -> Iterable[Question]:
        text, video = field(record, "question", str), video_path(id_field(record, "video_name"))
        yield Question(id_field(record, "question_id"), video, text, (), question_word(record))

    def parse_answer(record: Record) -> Iterable[tuple[str, str, str]]:
        text = id_field(record, "answer")
        qid = id_field(record, "question_id") if has_field(record, "question_id") else ""
        yield text, qid, answer_group(record) if answer_group else ""

    questions, answers = read_records(question_file, parse_question), read_records(answer_file, parse_answer)
    problem = "" if len(questions) == len(answers) else f"{len(answers)} answers to {len(questions)}"
    answered = []
    for number, (question, (text, qid, group)) in enumerate(zip(questions, answers), start=1):
        if qid not in ("", question.qid):
            problem = f"record {number} is about another question"
            break
        answered.append(replace(question, answers=(text,), group=group if answer_group else question.group))
    if problem:
        raise UserError(f"{answer_file}: {problem}, compared with {question_file.name}; download both again")
    return unique_ids(answered)


def read_one_file(file: Path, video_path: VideoPath, video_name: Callable[[str], str]) -> list[Question]:
    """Read one list of {question, answer, id, video_id}; `video_name` makes a video's name of its number.

    A text as `video_name` or `video` goes before the number. Raises UserError.
    """

    def parse_record(record: Record) -> Iterable[Question]:
        name_field = next((name for name in ("video_name", "video") if has_field(record, name)), None)
        name = field(record, name_field, str) if name_field else video_name(id_field(record, "video_id"))
        qid = id_field(record, "question_id" if has_field(record, "question_id") else "id")
        answer = id_field(record, "answer")
        yield Question(qid, video_path(name), field(record, "question", str), (answer,), question_word(record))

    return read_questions(file, parse_record)
