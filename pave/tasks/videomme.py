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
from pathlib import Path
from typing import Any

from pave.tasks import _annotations, _official_files
from pave.tasks.metrics import multiple_choice
from pave.tasks.metrics.exact_match import APART, counts, macro, share
from pave.types import Prediction, Question, UserError

TABLE = "videomme/test-00000-of-00001.parquet"
FILES = {"test": TABLE, "test_subtitles": TABLE}
SPLITS = tuple(FILES)
EXPECTED = {"test": 2700, "test_subtitles": 2700}
"""Questions; early revisions had 2,541 or 2,544."""
SUBTITLED = 744
"""Videos with a subtitle file, all the long ones among them."""
FRAMES = 32
SUBTITLES = f"subtitles_{FRAMES}.json"
NONE = "No subtitles available"
LETTERS = "ABCD"
DURATIONS = ("short", "medium", "long")
HEAD = (
    "Select the best answer to the following multiple-choice question based on the video and the subtitles. "
    "Respond with only the letter (A, B, C, or D) of the correct option."
)


def load(split: str, root: Path) -> list[Question]:
    """All questions; groups are duration, domain, sub-category and type of the task. Raises UserError."""
    file = _annotations.annotation("videomme", split, FILES, root)
    spoken = _spoken(root / SUBTITLES) if split == "test_subtitles" else None
    return _annotations.numbered(_annotations.records(file, _annotations.rows, partial(_question, spoken)))


def _spoken(file: Path) -> Mapping[str, str]:
    if not file.is_file():
        raise UserError(f"{file}: no such file; make it with `pave prepare videomme` where videos and subtitles are")
    return _annotations.parse(file)


def _question(spoken: Mapping[str, str] | None, raw: Any) -> Iterable[Question]:
    options = _annotations.texts(raw, "options")
    answer = _annotations.field(raw, "answer", str)
    if len(options) != len(LETTERS) or answer not in tuple(LETTERS):
        raise ValueError(f"has {len(options)} options and answer '{answer}', expected four and one of {LETTERS}")
    name = _annotations.field(raw, "videoID", str)
    asked = "\n".join((HEAD, _annotations.field(raw, "question", str), *options))
    if spoken is None:
        # Quirk: it speaks of subtitles here as well.
        text = f"{asked}\n\nAnswer with the option's letter from the given choices directly."
    elif name not in spoken:
        raise ValueError(f"is about {name}, which {SUBTITLES} does not name; run `pave prepare videomme` again")
    else:
        text = f"This video's subtitles are listed below: \n{spoken[name]}\n{asked}\nThe best answer is:"
    groups = [_annotations.field(raw, key, str) for key in ("duration", "domain", "sub_category", "task_type")]
    yield Question(
        qid=_annotations.ident(raw, "question_id"),
        video=f"data/{name}.mp4",
        text=text,
        answers=(answer,),
        group=APART.join(groups),
    )


def prompt(question: Question) -> str:
    """The words of lmms-eval, with subtitles or without."""
    return question.text


def target(question: Question) -> str:
    """The letter."""
    return question.answers[0]


def score(pairs: Iterable[tuple[Question, Prediction | None]]) -> dict[str, float]:
    """Accuracy as the release scores, by the newer extractor (`mcq`), and `strict`, by the letter that is stated.

    `answered` is the authors': what has no letter does not count. A question without a prediction is wrong in all.
    """
    pairs = list(pairs)
    said = [None if p is None else p.text for _, p in pairs]
    gold = [q.answers[0] for q, _ in pairs]
    kinds = [q.group for q, _ in pairs]
    old = [multiple_choice.legacy(text or "") for text in said]
    new = [multiple_choice.mcq(text or "", LETTERS) for text in said]
    read = [multiple_choice.strict(text or "", LETTERS) for text in said]
    right, mcq, strict = ([a == b for a, b in zip(found, gold)] for found in (old, new, read))
    found = share("accuracy", right, kinds)
    return {
        **found,
        **macro("accuracy", found, DURATIONS),
        **share("accuracy_mcq", mcq, kinds),
        **share("answered", [hit for hit, name, text in zip(right, old, said) if name or text is None]),
        **share("strict", strict, kinds),
        **counts(said, read),
    }


def chance(questions: Sequence[Question]) -> dict[str, float]:
    """Guessing one of four."""
    return dict.fromkeys(("accuracy", "accuracy_mcq", "strict"), 1 / len(LETTERS))


def about(split: str) -> dict[str, str]:
    """What the numbers of a split are: rules, prompt, references."""
    return {
        "accuracy": "legacy: the first of A to D in the answer (lmms-eval up to 0.7.1, the release); none is wrong",
        "accuracy_mcq": "extract_mcq_answer of lmms-eval from 0.7.2",
        "answered": "as the authors' script: legacy, answers without a letter left out",
        "strict": "the one letter that the answer states is right",
        "prompt": "lmms-eval with subtitles of 32 frames"
        if split == "test_subtitles"
        else "lmms-eval without subtitles",
        "references": "one letter; accuracy macro is the mean of the durations",
    }


def check(split: str, root: Path) -> list[str]:
    """What a split lacks beside annotations and videos: a line for each kind of missing subtitle file."""
    if split != "test_subtitles":
        return []
    there = {file.stem for file in root.glob("subtitle/*.srt")}
    long = {Path(q.video).stem for q in load("test", root) if q.group.startswith("long")}
    few = [f"{len(there)} of {SUBTITLED} subtitle files in {root / 'subtitle'}"] if len(there) < SUBTITLED else []
    return few + [f"subtitle/{name}.srt is missing, of a long video" for name in sorted(long - there)]


def prepare(raw: Path, out: Path) -> list[str]:
    """The table as JSON and, where there are videos, what their subtitles say at the frames looked at."""
    table = _annotations.records(raw / TABLE, _annotations.rows, lambda row: [row])
    names = sorted({_annotations.field(row, "videoID", str) for row in table})
    lines = [_official_files.write((out / TABLE).with_suffix(".json"), table)]
    spoken = {name: _said(raw, name) for name in names if (raw / f"data/{name}.mp4").is_file()}
    if spoken:
        lines.append(_official_files.write(out / SUBTITLES, spoken))
    silent = sum(not (raw / f"subtitle/{name}.srt").is_file() for name in names)
    return [*lines, f"{len(spoken)} of {len(names)} videos are there, {silent} without subtitles"]


def _said(raw: Path, name: str) -> str:
    from pave.media.frame_sampling import uniform
    from pave.media.video import info

    file = raw / f"subtitle/{name}.srt"
    if not file.is_file():
        return NONE
    video = info(raw / f"data/{name}.mp4")
    return at_frames(subtitles(file), video.fps, uniform(video.frames, FRAMES).tolist())


def subtitles(file: Path) -> dict[tuple[float, float], str]:
    """Texts of an .srt file by (start, end) in seconds; of equal times the last. Raises UserError."""
    found = {}
    for section in file.read_text(encoding="utf-8-sig").split("\n\n"):
        lines = section.split("\n")
        if section.strip() and len(lines) >= 3:
            times = re.findall(r"(\d+):(\d+):(\d+),(\d+)", lines[1])
            if len(times) != 2:
                raise UserError(f"{file}: '{lines[1]:.40}' is no line of times, expected 00:00:01,500 --> 00:00:02,000")
            start, end = (int(h) * 3600 + int(m) * 60 + int(s) + int(ms) / 1000 for h, m, s, ms in times)
            found[start, end] = " ".join(lines[2:])
    return found


def at_frames(said: Mapping[tuple[float, float], str], fps: float, frames: Sequence[int]) -> str:
    """The white lines said at any of the frames, as lmms-eval lists them."""
    spans = [(int(start * fps), int(end * fps), text) for (start, end), text in said.items()]
    # Quirk: in the order of a set of Python, which is not that of time; one line an entry, others are lost.
    chosen = {i for f in frames for i, (start, end, _) in enumerate(spans) if start <= f < end}
    lines = [re.findall('<font color="white" size=".72c">(.*?)</font>', spans[i][2])[:1] for i in chosen]
    return "\n".join(line for found in lines for line in found)
