"""MVBench: multiple choice about short videos, 20 tasks of 200 questions.

Below root, as on the branch `video` of the hub, its archives unpacked: json/<task>.json and <folder>/<video>, with the
folders of TASKS. One made-up record:

    {"video": "ZZ12A_0.mp4", "question": "What happened after the person took the cup?",
     "candidates": ["Opened the door.", "Sat down.", "Closed the box."], "answer": "Sat down.", "start": 3.1,
     "end": 11.8}
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import count
from operator import eq
from pathlib import Path, PurePosixPath

from pave.tasks import base
from pave.tasks._annotations import Record, field, read_question_files, texts_field
from pave.tasks._multiple_choice import guessing_scores
from pave.tasks.metrics.aggregate import count_answers, macro_mean, mean
from pave.tasks.metrics.multiple_choice import is_right_for_mvbench_authors, mvbench_letter, stated_letter
from pave.types import Question

VIDEO_FOLDERS = {
    "action_sequence": "star/Charades_segment",
    "action_prediction": "star/Charades_segment",
    "action_antonym": "ssv2_video_mp4",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "unexpected_action": "FunQA_test/test",
    "object_existence": "clevrer/video_validation",
    "object_interaction": "star/Charades_segment",
    "object_shuffle": "perception/videos",
    "moving_direction": "clevrer/video_validation",
    "action_localization": "sta/sta_video_segment",
    "scene_transition": "scene_qa/video",
    "action_count": "perception/videos",
    "moving_count": "clevrer/video_validation",
    "moving_attribute": "clevrer/video_validation",
    "state_change": "perception/videos",
    "fine_grained_pose": "nturgbd_convert",
    "character_order": "perception/videos",
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa/video_fps3_hq_segment",
    "counterfactual_inference": "clevrer/video_validation",
}
"""Folder of each task's videos."""
LETTERS = "ABCDE"


class Task(base.Task):
    files = {task: f"json/{task}.json" for task in VIDEO_FOLDERS}
    splits = ("test", *VIDEO_FOLDERS)
    expected_counts = {"test": 200 * len(VIDEO_FOLDERS), **dict.fromkeys(VIDEO_FOLDERS, 200)}

    def load(self, split: str, root: Path) -> list[Question]:
        """Questions of all tasks, or of one; the group is the task. Raises UserError."""
        self.check_split(split)
        tasks = self.files if split == "test" else [split]
        return read_question_files({root / self.files[task]: partial(_parse_record, task, count()) for task in tasks})

    def score(self, pairs: Iterable[base.Pair]) -> base.Scores:
        """Accuracy by task and its mean over tasks as lmms-eval scores, `official` the authors' rule, `strict` ours.

        `micro` is over all questions, where an empty answer is wrong.
        """
        texts, references, tasks = base.columns(pairs)
        right = [text is not None and mvbench_letter(text) == letter for text, letter in zip(texts, references)]
        authors = [
            text is not None and is_right_for_mvbench_authors(text, letter) for text, letter in zip(texts, references)
        ]
        stated = [stated_letter(text or "", LETTERS) for text in texts]

        # Quirk: an empty answer does not count at all.
        counted = [(hit, task) for hit, task, text in zip(right, tasks, texts) if text != ""]
        by_task = mean("accuracy", [hit for hit, _ in counted], [task for _, task in counted])
        if by_task:
            by_task["accuracy"] = macro_mean("accuracy", by_task, VIDEO_FOLDERS)["accuracy macro"]
        return {
            **by_task,
            **mean("micro", right),
            **mean("official", authors, tasks),
            **mean("strict", list(map(eq, stated, references)), tasks),
            **count_answers(texts, stated),
        }

    def chance(self, questions: Sequence[Question]) -> base.Scores:
        """Guessing one of the options in the question."""
        metrics = ("accuracy", "micro", "official", "strict")
        return guessing_scores(metrics, [question.text.count("\n(") for question in questions])

    def describe(self, split: str) -> dict[str, str]:
        return {
            "accuracy": "mcq_acc of lmms-eval: the first of a to e on its own, without empty answers; mean of tasks",
            "official": "check_ans of the authors' notebook: first words compared, an empty answer is right",
            "strict": "the one letter that the answer states is right",
            "prompt": "lmms-eval",
            "references": "the first candidate that equals the answer",
        }


def _parse_record(task: str, numbers: Iterator[int], record: Record) -> Iterable[Question]:
    """`numbers` count the usable records of the task, for the ids."""
    options = texts_field(record, "candidates")
    answer = field(record, "answer", str)
    if len(options) > len(LETTERS) or answer not in options:
        raise ValueError(f"has {len(options)} candidates, answer '{answer:.40}'; expected at most five with the answer")

    video = field(record, "video", str)
    question = field(record, "question", str)
    option_lines = "".join(f"({letter}) {option}\n" for letter, option in zip(LETTERS, options))
    # Quirk: of equal candidates the first is right.
    letter = LETTERS[options.index(answer)]
    yield Question(
        qid=f"{task}/{next(numbers)}",
        video=f"{VIDEO_FOLDERS[task]}/{video}",
        text=f"Question:{question}\nOption:\n{option_lines}Only give the best option.\n",
        answers=(letter, answer),
        group=task,
        features=str(PurePosixPath(VIDEO_FOLDERS[task]) / PurePosixPath(video).stem),
    )
