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
from operator import eq
from pathlib import Path, PurePosixPath

from pave.tasks import base
from pave.tasks._annotations import Record, field, list_under, prepared_question, read_questions
from pave.tasks._official_files import prepare_splits, write_training_records
from pave.tasks.metrics.aggregate import count_answers, macro_mean, mean
from pave.types import Question

PROMPT_VARIANTS = ("", "_action", "_short")
FILES = {
    f"{part}{variant}": f"annotations/proficiency_demonstrator_{part}.json"
    for variant in PROMPT_VARIANTS
    for part in ("train", "val")
}
LEVELS = ("Novice", "Early Expert", "Intermediate Expert", "Late Expert")
PROMPT_HEAD = "In this video, a human is performing an activity"
PROMPT_GOAL = (
    ". Your goal is to evaluate the human's skill level based on their technique, consistency, and overall execution "
    "of the activity. You will classify the performance into one of the following levels: "
)
LEVEL_DEFINITIONS = (
    "1. Novice: Beginner-level performance with noticeable gaps in basic skills, understanding, or execution. "
    "2. Early Expert: Competent performance showing solid foundational skills, but with room for refinement. "
    "3. Intermediate Expert: Advanced performance demonstrating strong technical abilities and strategic "
    "understanding, but not yet at mastery. "
    "4. Late Expert: Near-masterful or masterful performance, showcasing exceptional skill, precision, and expertise."
)
LEVEL_NAMES = "1. Novice 2. Early Expert. 3. Intermediate Expert 4. Late Expert."
# Quirk: the example is one of the levels, which weak models then choose.
PROMPT_EXAMPLE = " Example Output: Early Expert"


class Task(base.Task):
    files = FILES | {"train_prepared": "egoexo_train_instruct.json"}
    splits = tuple(files)
    # No counts are expected: the numbers of takes differ between versions of the annotations.
    prepares = True

    def load(self, split: str, root: Path) -> list[Question]:
        """Takes of a split; the group is the scenario. Raises UserError."""
        file = self.annotation_file(split, root)
        if split == "train_prepared":
            return read_questions(file, _parse_prepared)
        return read_questions(file, partial(_parse_take, split.partition("_")[2]), list_under("annotations"))

    def score(self, pairs: Iterable[base.Pair]) -> base.Scores:
        """Accuracy over all takes and by scenario as published, and `strict`, by the only level named.

        By level too, with their mean; `Novice as Late Expert` counts the novices called so, `unparsed` the answers that
        name no level or several.
        """
        texts, references, scenarios = base.columns(pairs)
        # Quirk: right is what has the level anywhere in it, so an answer that lists all four is always right.
        contains = [text is not None and level in text for text, level in zip(texts, references)]
        named = [named_level(text or "") for text in texts]
        strict = list(map(eq, named, references))

        by_level = mean("strict", strict, references)
        confusions = Counter(zip(references, named))
        return {
            **mean("accuracy", contains, scenarios),
            **by_level,
            **mean("strict", strict, scenarios),
            **macro_mean("strict", by_level, LEVELS),
            **count_answers(texts, named),
            **{f"{a} as {b}": confusions[a, b] for a in LEVELS for b in LEVELS if confusions[a, b]},
        }

    def chance(self, questions: Sequence[Question]) -> base.Scores:
        """Always the most frequent level: the levels are not equally likely."""
        levels = Counter(question.answers[0] for question in questions)
        highest = max(levels.values(), default=0) / max(len(questions), 1)
        return {"accuracy": highest, "strict": highest}

    def describe(self, split: str) -> dict[str, str]:
        variants = {"action": "names scenario and task", "short": "lists the levels without definitions"}
        return {
            "accuracy": "the level stands anywhere in the answer, as the official code scores",
            "strict": "the right level is the only one named",
            "prompt": variants.get(split.partition("_")[2], "the official one, with definitions of the levels"),
            "references": "one level; val is the test; chance is the most frequent level",
        }

    def prepare(self, raw: Path, out: Path) -> list[str]:
        """Write training records, with the published prompt."""
        return prepare_splits(raw, self.files, {"train": partial(write_training_records, self, "train", raw, out, str)})


def named_level(text: str) -> str:
    """The only level that a text names, in capitals or not, or ""."""
    levels = [level for level in LEVELS if level.lower() in text.lower()]
    return levels[0] if len(levels) == 1 else ""


def _parse_take(variant: str, record: Record) -> Iterable[Question]:
    level = field(record, "proficiency_score", str)
    if level not in LEVELS:
        raise ValueError(f"has the level '{level}', expected one of {', '.join(LEVELS)}")

    scenario = field(record, "scenario_name", str)
    action = ""
    if variant == "action":
        action = f": {scenario}, and the task name is: {field(record, 'task_name', str)}"
    levels = LEVEL_NAMES if variant == "short" else LEVEL_DEFINITIONS

    ego_video = PurePosixPath(field(field(record, "video_paths", dict), "ego", str))
    yield Question(
        qid=field(record, "take_uid", str),
        video=str(ego_video.parent / "downscaled/448" / ego_video.name),
        text=PROMPT_HEAD + action + PROMPT_GOAL + levels + PROMPT_EXAMPLE,
        answers=(level,),
        group=scenario,
        features=str(ego_video.parent / "downscaled/448"),
    )


def _parse_prepared(record: Record) -> Iterable[Question]:
    (question,) = prepared_question(str, record)
    yield replace(question, features=str(PurePosixPath(question.video).parent))
