"""The small embedded world: questions that one side-channel decides, and visual controls that every picture does.

One line of root/scenes_test.jsonl, made by `pave.sideworld.files.make` (here broken in two):

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
from pave.sideworld.scene import COLORS, SHAPES, SOUNDS, SPLITS, Scene, Thing, scene
from pave.types import Prediction, Question, UserError
from pave.utils.registry import nearest


class Kind(NamedTuple):
    """One kind of question."""

    name: str
    needs: str
    """The channel, or all of them joined by +, without which none can answer; `visual`: the video alone answers."""
    text: str
    """With `{color}` for the color of the thing asked about."""
    answer: Callable[[Scene], str]
    options: Callable[[Scene], tuple[str, ...]]
    """All answers left to one who sees which two things there are but not the fact asked for; as many in any scene."""


def _shapes(scene: Scene) -> tuple[str, ...]:
    """In the order of the alphabet: the place in the list must tell nothing."""
    return tuple(sorted(thing.shape for thing in scene.things))


def _sounding(scene: Scene) -> Thing:
    return scene.things[scene.sounding]


def _asked(scene: Scene) -> Thing:
    return scene.things[scene.asked]


def _colors(scene: Scene) -> tuple[str, ...]:
    return tuple(thing.color for thing in scene.things)


def _two_colors(scene: Scene) -> tuple[str, ...]:
    return tuple(sorted(_colors(scene)))


def _all_colors(scene: Scene) -> tuple[str, ...]:
    return tuple(sorted(COLORS))


def _first_flash(scene: Scene) -> str:
    return min(scene.flashes, key=lambda flash: flash.frames).color


def _heard_flash(scene: Scene) -> str:
    return scene.flashes[scene.sounding].color


def _bigger_back(scene: Scene) -> str:
    return scene.backs[scene.things.index(scene.bigger)]


def _left_back(scene: Scene) -> str:
    return scene.backs[0]


def _nearer(scene: Scene) -> Thing:
    return scene.things[scene.metres.index(min(scene.metres))]


KINDS = (
    Kind("which_sound", "audio", "Which sound is heard?", lambda s: s.sound, lambda s: tuple(SOUNDS)),
    Kind("who_jumped", "audio", "Which shape jumped when the sound was heard?", lambda s: _sounding(s).shape, _shapes),
    Kind("bigger_color", "visual", "Which color is the bigger shape?", lambda s: s.bigger.color, _colors),
    Kind("shape_of_color", "visual", "Which shape is {color}?", lambda s: _asked(s).shape, _shapes),
    Kind("left_shape", "visual", "Which shape is on the left?", lambda s: s.things[0].shape, _shapes),
)
"""What the shipped base has been asked."""
FURTHER = (
    Kind("first_flash", "dense", "Which color flashed first?", _first_flash, _all_colors),
    Kind("heard_flash", "audio+dense", "Which color flashed when the sound was heard?", _heard_flash, _all_colors),
    Kind("bigger_back", "exo", "Which color is the back of the bigger shape?", _bigger_back, _all_colors),
    Kind("left_back", "exo", "Which color is the back of the shape on the left?", _left_back, _all_colors),
    Kind("nearer_shape", "depth", "Which shape is nearer?", lambda s: _nearer(s).shape, _shapes),
    Kind("nearer_color", "depth", "Which color is the nearer shape?", lambda s: _nearer(s).color, _two_colors),
)
"""What it never heard of."""
CHANNELS_ONLY = "channels"
"""The split `train` without visual controls, to begin with: they hold a new patch down."""


def load(split: str, root: Path) -> list[Question]:
    """All questions on the `train` or `test` clips below `root`, clip by clip; `video` is relative to `root`.

    The split `channels` is `train` without the visual controls. Opens no clip. Raises UserError if there is no such
    split or its facts are missing or broken.
    """
    if split not in (*SPLITS, CHANNELS_ONLY):
        raise UserError(f"sideworld has no split '{split}'; {nearest(split, (*SPLITS, CHANNELS_ONLY))}")
    records = read_scenes(root / f"scenes_{'train' if split == CHANNELS_ONLY else split}.jsonl")
    left_out = [kind.name for kind in KINDS if kind.needs == "visual" and split == CHANNELS_ONLY]
    return [q for record in records for q in ask(record.scene, record.video) if q.group not in left_out]


def ask(scene: Scene, video: str = "") -> list[Question]:
    """One question of every kind that the scene's channels can answer; without a file for pictures made on the fly."""
    return [
        Question(
            qid=f"{Path(video).stem}.{kind.name}",
            video=video,
            text=kind.text.format(color=_asked(scene).color),
            answers=(kind.answer(scene),),
            group=kind.name,
        )
        for kind in (*KINDS, *FURTHER)
        if {*kind.needs.split("+")} <= {"visual", *scene.channels}
    ]


def prompt(question: Question) -> str:
    """What the model is told."""
    return _instruct(question.text)


def target(question: Question) -> str:
    """What the model learns to say."""
    return question.answers[0]


def score(pairs: Iterable[tuple[Question, Prediction | None]]) -> dict[str, float]:
    """Share of right answers per kind and over all that need the same (`audio`, `visual`, ...), and `n`, `missing`.

    A question without a prediction is wrong, and counted as missing.
    """
    pairs = list(pairs)
    right = [prediction is not None and _right(question, prediction) for question, prediction in pairs]
    result = _means([question.group for question, _ in pairs], [float(r) for r in right])
    return {**result, "n": len(pairs), "missing": sum(prediction is None for _, prediction in pairs)}


def chance(questions: Sequence[Question]) -> dict[str, float]:
    """What guessing among the options reaches, under the same names as `score`."""
    any_scene = scene(0)
    guess = {kind.name: 1.0 / len(kind.options(any_scene)) for kind in (*KINDS, *FURTHER)}
    return _means([question.group for question in questions], [guess[question.group] for question in questions])


def texts() -> list[str]:
    """Every prompt of KINDS and every answer word, for training the shipped base's tokenizer."""
    questions = dict.fromkeys(kind.text.format(color=color) for kind in KINDS for color in COLORS)
    return [_instruct(text) for text in questions] + [*SOUNDS, *SHAPES, *COLORS]


def _instruct(text: str) -> str:
    return f"{text} Answer with one word."


def _right(question: Question, prediction: Prediction) -> bool:
    return prediction.text.strip().lower().removesuffix(".").strip() in question.answers


def _means(groups: list[str], values: list[float]) -> dict[str, float]:
    """Mean value per kind and per what it needs, for those that occur."""
    needs = {kind.name: kind.needs for kind in (*KINDS, *FURTHER)}
    gathered: dict[str, list[float]] = {}
    for group, value in zip(groups, values):
        gathered.setdefault(group, []).append(value)
        gathered.setdefault(needs[group], []).append(value)
    return {name: sum(found) / len(found) for name, found in gathered.items()}
