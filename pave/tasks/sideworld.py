"""The small embedded world: questions that one side-channel decides, and visual controls that every picture does.

One line of root/scenes_test.jsonl, made by `pave.sideworld.files.make_clips` (here broken in two):

    {"video": "videos/test_00000.mp4", "scene": {"seed": 1, "background": [70, 22, 51], "things": [
      {"shape": "star", "color": "blue", "radius": 10.8, "x": [17.0, 15.2], "y": [43.1, 44.0], "jump": 2.819}, {...}],
      "asked": 0, "sounding": 1, "sound": "buzz", "loudness": 0.61}}

With other channels than audio it names them: "channels": ["dense", "exo", "depth"], and says what only they show:
"flashes": [{"color": "red", "frames": [22, 23, 24]}, {...}], "backs": ["white", "blue"], "metres": [1.31, 2.74].
Each clip gets one question of every kind that its channels can answer; the group of a question is the name of its kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from pave.sideworld.files import read_scenes
from pave.sideworld.scene import COLORS, SHAPES, SOUNDS, SPLITS, Scene, Thing, draw_scene
from pave.tasks import base
from pave.tasks.metrics.exact_match import strip_answer
from pave.types import Question


class Kind(NamedTuple):
    """One kind of question."""

    name: str
    needs: str
    """The channel, or several joined by +, without which none can answer; `visual`: the video alone answers."""
    text: str
    """With `{color}` for the color of the thing in the question."""
    answer: Callable[[Scene], str]
    options: Callable[[Scene], tuple[str, ...]]
    """All answers left to one who sees which two things there are but not the fact asked for; as many in any scene."""


def _shapes(scene: Scene) -> tuple[str, ...]:
    """In the order of the alphabet: the place in the list must tell nothing."""
    return tuple(sorted(thing.shape for thing in scene.things))


def _sounding(scene: Scene) -> Thing:
    return scene.things[scene.sounding]


def _in_question(scene: Scene) -> Thing:
    return scene.things[scene.asked]


def _colors(scene: Scene) -> tuple[str, ...]:
    return tuple(thing.color for thing in scene.things)


def _sorted_colors(scene: Scene) -> tuple[str, ...]:
    return tuple(sorted(_colors(scene)))


def _all_colors(scene: Scene) -> tuple[str, ...]:
    return tuple(sorted(COLORS))


def _first_flash(scene: Scene) -> str:
    return min(scene.flashes, key=lambda flash: flash.frames).color


def _flash_at_sound(scene: Scene) -> str:
    return scene.flashes[scene.sounding].color


def _back_of_bigger(scene: Scene) -> str:
    return scene.backs[scene.things.index(scene.bigger)]


def _nearer(scene: Scene) -> Thing:
    return scene.things[scene.metres.index(min(scene.metres))]


BASE_KINDS = (
    Kind("which_sound", "audio", "Which sound is heard?", lambda s: s.sound, lambda s: tuple(SOUNDS)),
    Kind("who_jumped", "audio", "Which shape jumped when the sound was heard?", lambda s: _sounding(s).shape, _shapes),
    Kind("bigger_color", "visual", "Which color is the bigger shape?", lambda s: s.bigger.color, _colors),
    Kind("shape_of_color", "visual", "Which shape is {color}?", lambda s: _in_question(s).shape, _shapes),
    Kind("left_shape", "visual", "Which shape is on the left?", lambda s: s.things[0].shape, _shapes),
)
"""Questions that the shipped base was trained with."""
EXTRA_KINDS = (
    Kind("first_flash", "dense", "Which color flashed first?", _first_flash, _all_colors),
    Kind("heard_flash", "audio+dense", "Which color flashed when the sound was heard?", _flash_at_sound, _all_colors),
    Kind("bigger_back", "exo", "Which color is the back of the bigger shape?", _back_of_bigger, _all_colors),
    Kind("left_back", "exo", "Which color is the back of the shape on the left?", lambda s: s.backs[0], _all_colors),
    Kind("nearer_shape", "depth", "Which shape is nearer?", lambda s: _nearer(s).shape, _shapes),
    Kind("nearer_color", "depth", "Which color is the nearer shape?", lambda s: _nearer(s).color, _sorted_colors),
)
"""Questions that it never saw."""
KINDS = (*BASE_KINDS, *EXTRA_KINDS)
CHANNELS_ONLY = "channels"
"""The split `train` without visual controls, to begin with: they hold a new patch down."""


class Task(base.Task):
    splits = (*SPLITS, CHANNELS_ONLY)

    def load(self, split: str, root: Path) -> list[Question]:
        """Questions on the `train` or `test` clips, clip by clip.

        The split `channels` is `train` without visual controls. Raises UserError if the facts are missing or broken.
        """
        self.check_split(split)
        questions = []
        for record in read_scenes(root / f"scenes_{'train' if split == CHANNELS_ONLY else split}.jsonl"):
            questions += scene_questions(record.scene, record.video)

        if split != CHANNELS_ONLY:
            return questions
        visual = [kind.name for kind in KINDS if kind.needs == "visual"]
        return [question for question in questions if question.group not in visual]

    def prompt(self, question: Question) -> str:
        """The question, and how to answer."""
        return _instruct(question.text)

    def score(self, pairs: Iterable[base.Pair]) -> base.Scores:
        """Share of right answers per kind and over all that need the same (`audio`, `visual`, ...), and counts."""
        pairs = list(pairs)
        right = [
            prediction is not None and strip_answer(prediction.text) in question.answers
            for question, prediction in pairs
        ]
        missing = sum(prediction is None for _, prediction in pairs)
        return {**_means([question.group for question, _ in pairs], right), "n": len(pairs), "missing": missing}

    def chance(self, questions: Sequence[Question]) -> base.Scores:
        """Guessing among the options."""
        any_scene = draw_scene(0)
        expected = {kind.name: 1.0 / len(kind.options(any_scene)) for kind in KINDS}
        groups = [question.group for question in questions]
        return _means(groups, [expected[group] for group in groups])


def scene_questions(scene: Scene, video: str = "") -> list[Question]:
    """One question of every kind that the scene's channels can answer; no `video` for frames made on the fly."""
    return [
        Question(
            qid=f"{Path(video).stem}.{kind.name}",
            video=video,
            text=kind.text.format(color=_in_question(scene).color),
            answers=(kind.answer(scene),),
            group=kind.name,
        )
        for kind in KINDS
        if {*kind.needs.split("+")} <= {"visual", *scene.channels}
    ]


def vocabulary_texts() -> list[str]:
    """Every prompt of BASE_KINDS and every answer word, for training the shipped base's tokenizer."""
    questions = dict.fromkeys(kind.text.format(color=color) for kind in BASE_KINDS for color in COLORS)
    return [_instruct(text) for text in questions] + [*SOUNDS, *SHAPES, *COLORS]


def _instruct(text: str) -> str:
    return f"{text} Answer with one word."


def _means(groups: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    """Mean value per kind and per channel it needs, for those that occur."""
    needs = {kind.name: kind.needs for kind in KINDS}
    members: dict[str, list[float]] = {}
    for group, value in zip(groups, values):
        members.setdefault(group, []).append(value)
        members.setdefault(needs[group], []).append(value)
    return {name: sum(numbers) / len(numbers) for name, numbers in members.items()}
