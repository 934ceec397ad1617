"""The questions of the small embedded world: scores, and that no picture answers an audio question."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.sideworld_scenes import visible_labels
from helpers.sideworld_sounds import other_sound

from pave.sideworld.files import make
from pave.sideworld.scene import COLORS, SOUNDS, Scene, clip_seed, scene
from pave.tasks import sideworld
from pave.types import Prediction, Question, UserError
from pave.utils import registry


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [scene(clip_seed("train", 7, index)) for index in range(4000)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    make(root, clips_train=8, clips_test=4, seed=3, workers=1)
    return root


def visible_numbers(one: Scene) -> list[float]:
    """Every visible fact that is a number."""
    things = [(t.radius, *t.x, *t.y, t.jump) for t in one.things]
    return [*one.background, *things[0], *things[1], one.first.jump, one.bigger.jump]


def surprise(a: list[str], b: list[str]) -> float:
    """Chi-square of two labels, as standard deviations above what independence gives."""
    names_a, index_a = np.unique(a, return_inverse=True)
    names_b, index_b = np.unique(b, return_inverse=True)
    seen = np.zeros((len(names_a), len(names_b)))
    np.add.at(seen, (index_a, index_b), 1)
    expected = seen.sum(1, keepdims=True) * seen.sum(0, keepdims=True) / seen.sum()
    freedom = (len(names_a) - 1) * (len(names_b) - 1)
    return float((((seen - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom))


def audio_secrets(one: Scene) -> dict[str, str]:
    """What the audio questions hang on: the sound, and the sounding thing by each way to tell the two apart."""
    heard = one.things[one.sounding]
    shapes, colors = sorted(t.shape for t in one.things), sorted(t.color for t in one.things)
    return {
        "sound": one.sound,
        "side": str(one.sounding),
        "is bigger": str(heard is one.bigger),
        "is first": str(heard is one.first),
        "first by shape name": str(heard.shape == shapes[0]),
        "first by color name": str(heard.color == colors[0]),
    }


def test_no_visible_fact_tells_an_audio_answer(scenes: list[Scene]) -> None:
    secrets = [audio_secrets(one) for one in scenes]
    labels = [visible_labels(one) for one in scenes]
    numbers = np.array([visible_numbers(one) for one in scenes])
    for secret in secrets[0]:
        hidden = [row[secret] for row in secrets]
        for fact in labels[0]:
            assert surprise(hidden, [row[fact] for row in labels]) < 4, (secret, fact)
        for value in np.unique(hidden):
            with_value = (np.array(hidden) == value).astype(float)
            for column in numbers.T:
                assert abs(np.corrcoef(with_value, column)[0, 1]) < 4 / np.sqrt(len(scenes)), (secret, value)
    assert surprise([row["sound"] for row in secrets], [row["side"] for row in secrets]) < 4
    for secret in ("side", "is bigger", "is first", "first by shape name", "first by color name"):
        share = np.mean([row[secret] in ("1", "True") for row in secrets])
        assert abs(share - 0.5) < 4 * np.sqrt(0.25 / len(scenes)), secret


def test_the_association_test_has_power(scenes: list[Scene]) -> None:
    """The same chi-square finds a secret that leaks in one scene of eight."""
    pitch = dict(zip(COLORS, SOUNDS))
    for share, found in ((8, True), (len(scenes) + 1, False)):
        leaks = [index % share == share - 1 for index in range(len(scenes))]
        side = [one.things.index(one.bigger) if leak else one.sounding for one, leak in zip(scenes, leaks)]
        tone = [pitch[one.bigger.color] if leak else one.sound for one, leak in zip(scenes, leaks)]
        assert (surprise([str(x) for x in side], [str(one.bigger is one.things[0]) for one in scenes]) > 4) == found
        assert (surprise(tone, [one.bigger.color for one in scenes]) > 4) == found


def test_a_learner_of_all_visible_facts_stays_at_chance(scenes: list[Scene]) -> None:
    """Least squares on 3,000 scenes, tried on 1,000: at chance for what is heard, right for what is seen."""
    rows = [visible_labels(one) for one in scenes]
    blocks = [np.array([visible_numbers(one) for one in scenes])]
    for fact in rows[0]:
        values = [row[fact] for row in rows]
        blocks.append((np.array(values)[:, None] == np.unique(values)).astype(float))
    x = np.concatenate(blocks, axis=1)
    x = (x - x.mean(0)) / (x.std(0) + 1e-9)

    def accuracy(answers: list[str]) -> float:
        names, index = np.unique(answers, return_inverse=True)
        y = np.eye(len(names))[index]
        weights = np.linalg.solve(x[:3000].T @ x[:3000] + 10 * np.eye(x.shape[1]), x[:3000].T @ (y[:3000] - y.mean(0)))
        return float(((x[3000:] @ weights + y.mean(0)).argmax(1) == index[3000:]).mean())

    assert abs(accuracy([one.sound for one in scenes]) - 0.125) < 4 * np.sqrt(0.125 * 0.875 / 1000)
    for secret in ("side", "is bigger", "is first", "first by shape name"):
        assert abs(accuracy([audio_secrets(one)[secret] for one in scenes]) - 0.5) < 4 * np.sqrt(0.25 / 1000), secret
    assert accuracy([one.bigger.color for one in scenes]) > 0.95
    assert accuracy([one.first.shape for one in scenes]) > 0.95


def test_visual_answers_follow_from_the_visible_facts(scenes: list[Scene]) -> None:
    kinds = {kind.name: kind for kind in sideworld.KINDS}
    visual = [kind for kind in sideworld.KINDS if kind.needs == "visual"]
    assert len(visual) == 3
    for one in scenes[:500]:
        left, right = one.things
        assert kinds["bigger_color"].answer(one) == (left.color if left.radius > right.radius else right.color)
        assert kinds["left_shape"].answer(one) == left.shape
        asked = {left.color: left.shape, right.color: right.shape}[one.things[one.asked].color]
        assert kinds["shape_of_color"].answer(one) == asked
        assert all(kind.answer(one) == kind.answer(other_sound(one)) for kind in visual)
        assert kinds["which_sound"].answer(one) != kinds["which_sound"].answer(other_sound(one))
        assert kinds["who_jumped"].answer(one) != kinds["who_jumped"].answer(other_sound(one))
        for kind in sideworld.KINDS:
            options = kind.options(one)
            assert kind.answer(one) in options
            assert len(set(options)) == len(kind.options(scene(0)))


def test_options_are_equally_likely(scenes: list[Scene]) -> None:
    """No option is favored by its place, so `chance` is what guessing reaches."""
    for kind in sideworld.KINDS:
        places = np.array([kind.options(one).index(kind.answer(one)) for one in scenes])
        count = len(kind.options(scenes[0]))
        spread = 4 * np.sqrt(1 / count * (1 - 1 / count) / len(scenes))
        assert np.abs(np.bincount(places, minlength=count) / len(scenes) - 1 / count).max() < spread, kind.name


def test_load(world: Path) -> None:
    assert "sideworld" in registry.names("tasks")
    task = registry.load("tasks", "sideworld")
    questions = task.load("test", world)
    assert len(questions) == 4 * len(task.KINDS)
    assert len({q.qid for q in questions}) == len(questions)
    assert questions[0].qid == "test_00000.which_sound"
    known = set(task.texts())
    for question in questions + task.load("train", world):
        assert (world / question.video).is_file()
        assert task.prompt(question) == f"{question.text} Answer with one word."
        assert task.prompt(question) in known
        assert task.target(question) in known
        assert task.target(question).isalpha()
        assert task.target(question).islower()
    assert {q.text for q in questions if q.group != "shape_of_color"} == {
        "Which sound is heard?",
        "Which shape jumped when the sound was heard?",
        "Which color is the bigger shape?",
        "Which shape is on the left?",
    }


def test_load_errors(world: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no split 'tset'; did you mean 'test'"):
        sideworld.load("tset", world)
    with pytest.raises(UserError, match=r"scenes_test\.jsonl: not found"):
        sideworld.load("test", tmp_path)
    make(tmp_path, clips_train=0, clips_test=3, seed=0, workers=1)
    with (tmp_path / "scenes_test.jsonl").open("a") as file:
        file.write('{"video": "x.mp4", "scene": {"seed": 1}}\n')
    with pytest.raises(UserError, match=r"scenes_test\.jsonl: line 4 is no sideworld scene"):
        sideworld.load("test", tmp_path)


def made_up(group: str, answer: str) -> Question:
    return Question(qid=f"{group}.{answer}", video="v.mp4", text="?", answers=(answer,), group=group)


def test_score_and_chance() -> None:
    hum, rise = made_up("which_sound", "hum"), made_up("which_sound", "rise")
    ring, star = made_up("who_jumped", "ring"), made_up("bigger_color", "red")
    pairs = [
        (hum, Prediction(hum.qid, " Hum.\n")),
        (rise, Prediction(rise.qid, "rise fall")),
        (ring, None),
        (star, Prediction(star.qid, "red")),
    ]
    assert sideworld.score(iter(pairs)) == {
        "which_sound": 0.5,
        "who_jumped": 0.0,
        "bigger_color": 1.0,
        "audio": pytest.approx(1 / 3),
        "visual": 1.0,
        "n": 4,
        "missing": 1,
    }
    assert sideworld.score([]) == {"n": 0, "missing": 0}
    assert sideworld.chance([hum, rise, ring, star]) == {
        "which_sound": 0.125,
        "who_jumped": 0.5,
        "bigger_color": 0.5,
        "audio": pytest.approx(0.25),
        "visual": 0.5,
    }


def test_always_saying_one_thing_scores_at_chance(scenes: list[Scene]) -> None:
    for name, answer, expected in (("which_sound", "hum", 1 / 8), ("who_jumped", "star", 1 / 6)):
        kind = next(kind for kind in sideworld.KINDS if kind.name == name)
        pairs = [(made_up(name, kind.answer(one)), Prediction("", answer)) for one in scenes]
        spread = 4 * np.sqrt(expected * (1 - expected) / len(scenes))
        assert abs(sideworld.score(pairs)[name] - expected) < spread
