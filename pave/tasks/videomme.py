"""Video-MME: multiple choice about 900 videos from half a minute to an hour, with subtitles or without.

Below root, as on the hub: videomme/test-00000-of-00001.parquet (or the .json that `pave prepare` makes of it), videos
as data/<videoID>.mp4, subtitles as subtitle/<videoID>.srt. The split test_subtitles adds to the question what is said
at the 32 frames looked at: subtitles_32.json, which `pave prepare` makes of videos and subtitles. A made-up record:

    {"video_id": "901", "duration": "short", "domain": "Knowledge", "sub_category": "Law", "url": "https://...",
     "videoID": "abcDEF12345", "question_id": "901-1", "task_type": "Counting Problem",
     "question": "How many lamps are lit?", "options": ["A. 1.", "B. 2.", "C. 3.", "D. 4."], "answer": "B"}
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from operator import eq
from pathlib import Path

from pave.tasks import base
from pave.tasks._annotations import Record, field, id_field, read_questions, read_records, texts_field
from pave.tasks._multiple_choice import LETTER_INSTRUCTION, SELECT_INSTRUCTION, guessing_scores
from pave.tasks._official_files import write_json
from pave.tasks.metrics.aggregate import GROUP_SEPARATOR, count_answers, macro_mean, mean
from pave.tasks.metrics.multiple_choice import extract_mcq_answer, first_letter, stated_letter
from pave.types import Question, UserError
from pave.utils.json_files import read_json

TABLE = "videomme/test-00000-of-00001.parquet"
SUBTITLED_VIDEOS = 744
"""Videos with a subtitle file, all the long ones among them."""
FRAMES = 32
SUBTITLES = f"subtitles_{FRAMES}.json"
SUBTITLES_ORIGIN = "what `pave prepare videomme` writes where videos and subtitles are"
NO_SUBTITLES = "No subtitles available"
LETTERS = "ABCD"
DURATIONS = ("short", "medium", "long")
Span = tuple[float, float]
"""Start and end in seconds."""


class Task(base.Task):
    files = {"test": TABLE, "test_subtitles": TABLE}
    splits = tuple(files)
    expected_counts = {"test": 2700, "test_subtitles": 2700}
    """Early revisions had 2,541 or 2,544 questions."""
    prepares = True

    def load(self, split: str, root: Path) -> list[Question]:
        """Questions; groups are duration, domain, sub-category and type of the task. Raises UserError."""
        file = self.annotation_file(split, root)
        subtitles = read_json(root / SUBTITLES, SUBTITLES_ORIGIN) if split == "test_subtitles" else None
        return read_questions(file, partial(_parse_record, subtitles))

    def score(self, pairs: Iterable[base.Pair]) -> base.Scores:
        """Accuracy as officially scored, by the newer extractor (`mcq`), and `strict`, by the letter that is stated.

        `answered` is the authors': what has no letter does not count.
        """
        texts, references, groups = base.columns(pairs)
        first = [first_letter(text or "") for text in texts]
        extracted = [extract_mcq_answer(text or "", LETTERS) for text in texts]
        stated = [stated_letter(text or "", LETTERS) for text in texts]

        right = list(map(eq, first, references))
        answered = [hit for hit, letter, text in zip(right, first, texts) if letter or text is None]
        accuracy = mean("accuracy", right, groups)
        return {
            **accuracy,
            **macro_mean("accuracy", accuracy, DURATIONS),
            **mean("accuracy_mcq", list(map(eq, extracted, references)), groups),
            **mean("answered", answered),
            **mean("strict", list(map(eq, stated, references)), groups),
            **count_answers(texts, stated),
        }

    def chance(self, questions: Sequence[Question]) -> base.Scores:
        """Guessing one of four."""
        return guessing_scores(("accuracy", "accuracy_mcq", "strict"), [len(LETTERS)])

    def describe(self, split: str) -> dict[str, str]:
        subtitles = "with subtitles of 32 frames" if split == "test_subtitles" else "without subtitles"
        return {
            "accuracy": "legacy: the first of A to D in the answer (lmms-eval up to 0.7.1, official); none is wrong",
            "accuracy_mcq": "extract_mcq_answer of lmms-eval from 0.7.2",
            "answered": "as the authors' script: legacy, answers without a letter left out",
            "strict": "the one letter that the answer states is right",
            "prompt": f"lmms-eval {subtitles}",
            "references": "one letter; accuracy macro is the mean of the durations",
        }

    def check(self, split: str, root: Path) -> list[str]:
        """Lines about missing subtitle files: how many there are, and the missing ones of long videos."""
        if split != "test_subtitles":
            return []
        present = {file.stem for file in root.glob("subtitle/*.srt")}
        questions = self.load("test", root)
        long_videos = {Path(question.video).stem for question in questions if question.group.startswith("long")}

        lines = []
        if len(present) < SUBTITLED_VIDEOS:
            lines.append(f"{len(present)} of {SUBTITLED_VIDEOS} subtitle files in {root / 'subtitle'}")
        return lines + [f"subtitle/{name}.srt is missing, of a long video" for name in sorted(long_videos - present)]

    def prepare(self, raw: Path, out: Path) -> list[str]:
        """Write the table as JSON and, where there are videos, their subtitles at the frames that a model sees."""
        table = read_records(raw / TABLE, lambda record: [record])
        lines = [write_json((out / TABLE).with_suffix(".json"), table)]

        names = sorted({field(record, "videoID", str) for record in table})
        subtitles = {name: _subtitle_text(raw, name) for name in names if (raw / f"data/{name}.mp4").is_file()}
        if subtitles:
            lines.append(write_json(out / SUBTITLES, subtitles))
        without = sum(not (raw / f"subtitle/{name}.srt").is_file() for name in names)
        return [*lines, f"{len(subtitles)} of {len(names)} videos are there, {without} without subtitles"]


def _parse_record(subtitles: Mapping[str, str] | None, record: Record) -> Iterable[Question]:
    options = texts_field(record, "options")
    answer = field(record, "answer", str)
    if len(options) != len(LETTERS) or answer not in tuple(LETTERS):
        raise ValueError(f"has {len(options)} options and answer '{answer}', expected four and one of {LETTERS}")

    name = field(record, "videoID", str)
    text = "\n".join((SELECT_INSTRUCTION, field(record, "question", str), *options))
    if subtitles is None:
        # Quirk: it speaks of subtitles here as well.
        text = f"{text}\n\n{LETTER_INSTRUCTION}"
    elif name not in subtitles:
        raise ValueError(f"is about {name}, which {SUBTITLES} does not name; run `pave prepare videomme` again")
    else:
        text = f"This video's subtitles are listed below: \n{subtitles[name]}\n{text}\nThe best answer is:"

    groups = [field(record, key, str) for key in ("duration", "domain", "sub_category", "task_type")]
    yield Question(
        qid=id_field(record, "question_id"),
        video=f"data/{name}.mp4",
        text=text,
        answers=(answer,),
        group=GROUP_SEPARATOR.join(groups),
    )


def _subtitle_text(raw: Path, name: str) -> str:
    from pave.media.frame_sampling import uniform
    from pave.media.video import read_info

    file = raw / f"subtitle/{name}.srt"
    if not file.is_file():
        return NO_SUBTITLES
    video = read_info(raw / f"data/{name}.mp4")
    return subtitles_at_frames(read_srt(file), video.fps, uniform(video.frames, FRAMES).tolist())


def read_srt(file: Path) -> dict[Span, str]:
    """Texts of an .srt file by (start, end) in seconds; of equal times the last. Raises UserError."""
    texts = {}
    for section in file.read_text(encoding="utf-8-sig").split("\n\n"):
        lines = section.split("\n")
        if not section.strip() or len(lines) < 3:
            continue
        times = re.findall(r"(\d+):(\d+):(\d+),(\d+)", lines[1])
        if len(times) != 2:
            raise UserError(f"{file}: '{lines[1]:.40}' is no line of times, expected 00:00:01,500 --> 00:00:02,000")
        start, end = [int(h) * 3600 + int(m) * 60 + int(s) + int(ms) / 1000 for h, m, s, ms in times]
        texts[start, end] = " ".join(lines[2:])
    return texts


def subtitles_at_frames(texts: Mapping[Span, str], fps: float, frames: Sequence[int]) -> str:
    """The white lines spoken at any of the frames, as lmms-eval lists them."""
    spans = [(int(start * fps), int(end * fps)) for start, end in texts]
    # Quirk: in the order of a set of Python, which is not that of time; one line an entry, others are lost.
    spoken = {i for frame in frames for i, (start, end) in enumerate(spans) if start <= frame < end}
    entries = list(texts.values())
    lines: list[str] = []
    for i in spoken:
        lines += re.findall('<font color="white" size=".72c">(.*?)</font>', entries[i])[:1]
    return "\n".join(lines)
