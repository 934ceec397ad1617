"""Ego-Exo4D, demonstrator proficiency: how good is the person at this? The split val is the test.

Below root, as the egoexo downloader leaves it: annotations/proficiency_demonstrator_{train,val}.json and
takes/<take>/frame_aligned_videos/downscaled/448/<camera>.mp4. The file of the split, with one made-up record:

    {"annotations": [{"take_uid": "0000-aa", "task_name": "Dribble drill", "scenario_name": "Basketball",
      "video_paths": {"ego": "takes/u_bb_01/frame_aligned_videos/aria01_214-1.mp4",
                      "exo1": "takes/u_bb_01/frame_aligned_videos/cam01.mp4"},
      "proficiency_score": "Early Expert"}, ...]}

The video is the ego camera; the exo cameras are the side-channel. The splits train_action, val_action ask with the
names of scenario and task, train_short, val_short without the definitions of the levels; train_prepared is
egoexo_train_instruct.json, as `pave prepare` writes it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from pave.tasks import _annotations, _official_files
from pave.tasks.metrics.exact_match import counts, macro, share
from pave.types import Prediction, Question

WAYS = ("", "_action", "_short")
FILES = {
    f"{part}{way}": f"annotations/proficiency_demonstrator_{part}.json" for way in WAYS for part in ("train", "val")
}
FILES["train_prepared"] = "egoexo_train_instruct.json"
SPLITS = tuple(FILES)
EXPECTED: dict[str, int] = {}
"""The numbers of takes differ between releases of the annotations."""
LEVELS = ("Novice", "Early Expert", "Intermediate Expert", "Late Expert")
HEAD = "In this video, a human is performing an activity"
TASK = (
    ". Your goal is to evaluate the human's skill level based on their technique, consistency, and overall execution "
    "of the activity. You will classify the performance into one of the following levels: "
)
LONG = (
    "1. Novice: Beginner-level performance with noticeable gaps in basic skills, understanding, or execution. "
    "2. Early Expert: Competent performance showing solid foundational skills, but with room for refinement. "
    "3. Intermediate Expert: Advanced performance demonstrating strong technical abilities and strategic "
    "understanding, but not yet at mastery. "
    "4. Late Expert: Near-masterful or masterful performance, showcasing exceptional skill, precision, and expertise."
)
SHORT = "1. Novice 2. Early Expert. 3. Intermediate Expert 4. Late Expert."
# Quirk: the example is one of the levels, which weak models then choose.
EXAMPLE = " Example Output: Early Expert"


def load(split: str, root: Path) -> list[Question]:
    """All takes of a split; the group is the scenario. Raises UserError."""
    file = _annotations.annotation("egoexo", split, FILES, root)
    if split == "train_prepared":
        return _annotations.numbered(_annotations.records(file, _annotations.rows, _prepared))
    return _annotations.numbered(_annotations.records(file, _takes, partial(_question, split.partition("_")[2])))


def _takes(data: Any) -> list[Any]:
    return _annotations.field(data, "annotations", list)


def _question(way: str, raw: Any) -> Iterable[Question]:
    level = _annotations.field(raw, "proficiency_score", str)
    if level not in LEVELS:
        raise ValueError(f"has the level '{level}', expected one of {', '.join(LEVELS)}")
    ego = PurePosixPath(_annotations.field(_annotations.field(raw, "video_paths", dict), "ego", str))
    scenario = _annotations.field(raw, "scenario_name", str)
    named = (
        f": {scenario}, and the task name is: {_annotations.field(raw, 'task_name', str)}" if way == "action" else ""
    )
    yield Question(
        qid=_annotations.field(raw, "take_uid", str),
        video=str(ego.parent / "downscaled/448" / ego.name),
        text=HEAD + named + TASK + (SHORT if way == "short" else LONG) + EXAMPLE,
        answers=(level,),
        group=scenario,
        features=str(ego.parent / "downscaled/448"),
    )


def _prepared(raw: Any) -> Iterable[Question]:
    (question,) = _annotations.prepared(str, raw)
    yield replace(question, features=str(PurePosixPath(question.video).parent))


def prompt(question: Question) -> str:
    """The published words, the same for every take unless they name its task."""
    return question.text


def target(question: Question) -> str:
    """The level."""
    return question.answers[0]


def score(pairs: Iterable[tuple[Question, Prediction | None]]) -> dict[str, float]:
    """Accuracy over all takes and by scenario as published, and `strict`, by the only level named.

    By level too, with their mean; `Novice as Late Expert` counts the novices called so, `unparsed` the answers that
    name no level or several. A take without a prediction is wrong, and counted as missing.
    """
    pairs = list(pairs)
    said = [None if p is None else p.text for _, p in pairs]
    gold = [q.answers[0] for q, _ in pairs]
    scenarios = [q.group for q, _ in pairs]
    # Quirk: right is what has the level anywhere in it, so an answer that lists all four is always right.
    right = [text is not None and level in text for text, level in zip(said, gold)]
    read = [named(text or "") for text in said]
    exact = [name == level for name, level in zip(read, gold)]
    strict = share("strict", exact, gold)
    table = Counter(zip(gold, read))
    return {
        **share("accuracy", right, scenarios),
        **strict,
        **share("strict", exact, scenarios),
        **macro("strict", strict, LEVELS),
        **counts(said, read),
        **{f"{a} as {b}": table[a, b] for a in LEVELS for b in LEVELS if table[a, b]},
    }


def named(text: str) -> str:
    """The only level that a text names, capitals or not, or ""."""
    found = [level for level in LEVELS if level.lower() in text.lower()]
    return found[0] if len(found) == 1 else ""


def chance(questions: Sequence[Question]) -> dict[str, float]:
    """Always the most frequent level: the levels are not equally likely."""
    levels = Counter(q.answers[0] for q in questions)
    most = max(levels.values(), default=0) / max(len(questions), 1)
    return {"accuracy": most, "strict": most}


def about(split: str) -> dict[str, str]:
    """What the numbers of a split are: rules, prompt, references."""
    ways = {"action": "names scenario and task", "short": "lists the levels without definitions"}
    return {
        "accuracy": "the level stands anywhere in the answer, as the release scores",
        "strict": "the right level is the only one named",
        "prompt": ways.get(split.partition("_")[2], "the release's, with definitions of the levels"),
        "references": "one level; val is the test; chance is the most frequent level",
    }


def prepare(raw: Path, out: Path) -> list[str]:
    """Training records, with the published prompt."""

    def train() -> list[str]:
        records = _official_files.instruct(load("train", raw), prompt, str)
        return [_official_files.write(out / FILES["train_prepared"], records)]

    return _official_files.every(raw, FILES, {"train": train})
