"""Ego-Exo4D, demonstrator proficiency: how good is the person at this? The split val is the test.

Below root, as the egoexo downloader leaves it: annotations/proficiency_demonstrator_{train,val}.json and
takes/<take>/frame_aligned_videos/downscaled/448/<camera>.mp4. The file of the split, with one made-up record:

    {"annotations": [{"take_uid": "0000-aa", "task_name": "Dribble drill", "scenario_name": "Basketball",
      "video_paths": {"ego": "takes/u_bb_01/frame_aligned_videos/aria01_214-1.mp4",
                      "exo1": "takes/u_bb_01/frame_aligned_videos/cam01.mp4"},
      "proficiency_score": "Early Expert"}, ...]}

The video is the ego camera; the exo cameras are the side-channel.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from pave.metrics.match import counts, share
from pave.tasks import _read
from pave.types import Prediction, Question

FILES = {part: f"annotations/proficiency_demonstrator_{part}.json" for part in ("train", "val")}
LEVELS = ("Novice", "Early Expert", "Intermediate Expert", "Late Expert")


def load(split: str, root: Path) -> list[Question]:
    """All takes of a split; the group is the scenario. Raises UserError."""
    file = _read.annotation("egoexo", split, FILES, root)
    return _read.numbered(_read.questions(file, _takes, _question))


def _takes(data: Any) -> list[Any]:
    return _read.field(data, "annotations", list)


def _question(raw: Any) -> Iterable[Question]:
    level = _read.field(raw, "proficiency_score", str)
    if level not in LEVELS:
        raise ValueError(f"has the level '{level}', expected one of {', '.join(LEVELS)}")
    ego = PurePosixPath(_read.field(_read.field(raw, "video_paths", dict), "ego", str))
    yield Question(
        qid=_read.field(raw, "take_uid", str),
        video=str(ego.parent / "downscaled/448" / ego.name),
        text="",
        answers=(level,),
        group=_read.field(raw, "scenario_name", str),
        features=str(ego.parent / "downscaled/448"),
    )


def prompt(question: Question) -> str:
    """The same published words for every take."""
    return (
        "In this video, a human is performing an activity. Your goal is to evaluate the human's skill level based on "
        "their technique, consistency, and overall execution of the activity. You will classify the performance into "
        "one of the following levels: 1. Novice: Beginner-level performance with noticeable gaps in basic skills, "
        "understanding, or execution. 2. Early Expert: Competent performance showing solid foundational skills, but "
        "with room for refinement. 3. Intermediate Expert: Advanced performance demonstrating strong technical "
        "abilities and strategic understanding, but not yet at mastery. 4. Late Expert: Near-masterful or masterful "
        "performance, showcasing exceptional skill, precision, and expertise. Example Output: Early Expert"
    )


def target(question: Question) -> str:
    """The level."""
    return question.answers[0]


def score(pairs: Iterable[tuple[Question, Prediction | None]]) -> dict[str, float]:
    """Accuracy over all takes and by scenario as published, and `strict`, where the right level is the only one named.

    `unclear` counts answers that name no level or several. A take without a prediction is wrong, and counted as
    missing.
    """
    pairs = list(pairs)
    said = [None if p is None else p.text for _, p in pairs]
    gold = [q.answers[0] for q, _ in pairs]
    # Quirk: right is what has the level anywhere in it, so an answer that lists all four is always right.
    right = [text is not None and level in text for text, level in zip(said, gold)]
    named = [None if text is None else [n for n in LEVELS if n.lower() in text.lower()] for text in said]
    return {
        **share("accuracy", right, [q.group for q, _ in pairs]),
        **share("strict", [names == [level] for names, level in zip(named, gold)]),
        **counts(said),
        "unclear": sum(names is not None and len(names) != 1 for names in named),
    }


def chance(questions: Sequence[Question]) -> dict[str, float]:
    """Always the most frequent level: the levels are not equally likely."""
    levels = Counter(q.answers[0] for q in questions)
    most = max(levels.values(), default=0) / max(len(questions), 1)
    return {"accuracy": most, "strict": most}
