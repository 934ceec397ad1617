"""MVBench: multiple choice about short videos, 20 tasks of 200 questions.

Below root, as on the branch `video` of the hub, its archives unpacked: json/<task>.json and <folder>/<video>, with the
folders of TASKS. One made-up record:

    {"video": "ZZ12A_0.mp4", "question": "What happened after the person took the cup?",
     "candidates": ["Opened the door.", "Sat down.", "Closed the box."], "answer": "Sat down.", "start": 3.1,
     "end": 11.8}
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from pave.tasks import _annotations
from pave.tasks.metrics import multiple_choice
from pave.tasks.metrics.exact_match import counts, macro, share
from pave.types import Prediction, Question

TASKS = {
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
"""The folder of each task's videos."""
SPLITS = ("test", *TASKS)
EXPECTED = {"test": 200 * len(TASKS)} | dict.fromkeys(TASKS, 200)
LETTERS = "ABCDE"


def load(split: str, root: Path) -> list[Question]:
    """All questions, or those of one task; the group is the task. Raises UserError."""
    files = {name: f"json/{name}.json" for name in SPLITS}
    _annotations.annotation("mvbench", split, files, root)
    found: list[Question] = []
    for name in TASKS if split == "test" else [split]:
        file = _annotations.annotation("mvbench", name, files, root)
        found += _annotations.records(file, _annotations.rows, partial(_question, name, Counter()))
    return found


def _question(task: str, seen: Counter[str], raw: Any) -> Iterable[Question]:
    options = _annotations.texts(raw, "candidates")
    answer = _annotations.field(raw, "answer", str)
    if len(options) > len(LETTERS) or answer not in options:
        raise ValueError(f"has {len(options)} candidates, answer '{answer:.40}'; expected at most five with the answer")
    video = _annotations.field(raw, "video", str)
    # Quirk: of equal candidates the first is right.
    lines = [f"({name}) {text}\n" for name, text in zip(LETTERS, options)]
    seen[task] += 1
    yield Question(
        qid=f"{task}/{seen[task] - 1}",
        video=f"{TASKS[task]}/{video}",
        text=(
            f"Question:{_annotations.field(raw, 'question', str)}\n"
            f"Option:\n{''.join(lines)}Only give the best option.\n"
        ),
        answers=(LETTERS[options.index(answer)], answer),
        group=task,
        features=str(PurePosixPath(TASKS[task]) / PurePosixPath(video).stem),
    )


def prompt(question: Question) -> str:
    """The words of lmms-eval, the same for all tasks."""
    return question.text


def target(question: Question) -> str:
    """The letter."""
    return question.answers[0]


def score(pairs: Iterable[tuple[Question, Prediction | None]]) -> dict[str, float]:
    """Accuracy by task and its mean over tasks as lmms-eval scores, `official` the authors' rule, `strict` ours.

    `micro` is over all questions, where an empty answer is wrong. A question without a prediction is wrong in all.
    """
    pairs = list(pairs)
    said = [None if p is None else p.text for _, p in pairs]
    gold = [q.answers[0] for q, _ in pairs]
    tasks = [q.group for q, _ in pairs]
    right = [text is not None and multiple_choice.mvbench(text) == answer for text, answer in zip(said, gold)]
    read = [multiple_choice.strict(text or "", LETTERS) for text in said]
    official = [text is not None and multiple_choice.mvbench_official(text, answer) for text, answer in zip(said, gold)]
    # Quirk: an empty answer does not count at all.
    counted = [(hit, task) for hit, task, text in zip(right, tasks, said) if text != ""]
    by_task = share("accuracy", [hit for hit, _ in counted], [task for _, task in counted])
    strict = share("strict", [name == answer for name, answer in zip(read, gold)], tasks)
    if by_task:
        by_task["accuracy"] = macro("accuracy", by_task, TASKS)["accuracy macro"]
    return {
        **by_task,
        **share("micro", right),
        **share("official", official, tasks),
        **strict,
        **counts(said, read),
    }


def chance(questions: Sequence[Question]) -> dict[str, float]:
    """Guessing one of the options that there are."""
    guesses = [1 / question.text.count("\n(") for question in questions]
    return dict.fromkeys(("accuracy", "micro", "official", "strict"), sum(guesses) / len(guesses)) if guesses else {}


def about(split: str) -> dict[str, str]:
    """What the numbers of a split are: rules, prompt, references."""
    return {
        "accuracy": "mcq_acc of lmms-eval: the first of a to e on its own, empty answers left out; mean of the tasks",
        "official": "check_ans of the authors' notebook: first words compared, an empty answer is right",
        "strict": "the one letter that the answer states is right",
        "prompt": "lmms-eval",
        "references": "the first candidate that equals the answer",
    }
