"""The questions of the small embedded world: scores, and that no picture answers an audio question."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.sideworld_scenes import other_sound, visible_labels
from helpers.task_data import write_others

from pave.sideworld.files import make_clips
from pave.sideworld.scene import COLORS, SOUNDS, Scene, clip_seed, draw_scene
from pave.tasks import sideworld
from pave.types import Prediction, Question, UserError


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(clip_seed("train", 7, index)) for index in range(4000)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    make_clips(root, clips_train=1, clips_test=2, seed=3, workers=1)
    return root


def visible_numbers(item: Scene) -> list[float]:
    """Every visible fact that is a number."""
    things = [(t.radius, *t.x, *t.y, t.jump) for t in item.things]
    return [*item.background, *things[0], *things[1], item.first.jump, item.bigger.jump]


def surprise(a: list[str], b: list[str]) -> float:
    """Chi-square of two labels, as standard deviations above what independence gives."""
    names_a, index_a = np.unique(a, return_inverse=True)
    names_b, index_b = np.unique(b, return_inverse=True)
    counts = np.zeros((len(names_a), len(names_b)))
    np.add.at(counts, (index_a, index_b), 1)
    expected = counts.sum(1, keepdims=True) * counts.sum(0, keepdims=True) / counts.sum()
    freedom = (len(names_a) - 1) * (len(names_b) - 1)
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom))


def audio_secrets(item: Scene) -> dict[str, str]:
    """What the audio questions hang on: the sound, and the sounding thing by each way to tell the two apart."""
    heard = item.things[item.sounding]
    shapes, colors = sorted(t.shape for t in item.things), sorted(t.color for t in item.things)
    return {
        "sound": item.sound,
        "side": str(item.sounding),
        "is bigger": str(heard is item.bigger),
        "is first": str(heard is item.first),
        "first by shape name": str(heard.shape == shapes[0]),
        "first by color name": str(heard.color == colors[0]),
    }


def test_no_visible_fact_tells_an_audio_answer(scenes: list[Scene]) -> None:
    secrets = [audio_secrets(item) for item in scenes]
    labels = [visible_labels(item) for item in scenes]
    numbers = np.array([visible_numbers(item) for item in scenes])
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
    for share, leaks_are_detected in ((8, True), (len(scenes) + 1, False)):
        leaks = [index % share == share - 1 for index in range(len(scenes))]
        side = [item.things.index(item.bigger) if leak else item.sounding for item, leak in zip(scenes, leaks)]
        tone = [pitch[item.bigger.color] if leak else item.sound for item, leak in zip(scenes, leaks)]
        assert (
            surprise([str(x) for x in side], [str(item.bigger is item.things[0]) for item in scenes]) > 4
        ) == leaks_are_detected
        assert (surprise(tone, [item.bigger.color for item in scenes]) > 4) == leaks_are_detected


def test_a_learner_of_all_visible_facts_stays_at_chance(scenes: list[Scene]) -> None:
    """Least squares on 3,000 scenes, tried on 1,000: at chance for what is heard, right for what is counts."""
    rows = [visible_labels(item) for item in scenes]
    blocks = [np.array([visible_numbers(item) for item in scenes])]
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

    assert abs(accuracy([item.sound for item in scenes]) - 0.125) < 4 * np.sqrt(0.125 * 0.875 / 1000)
    for secret in ("side", "is bigger", "is first", "first by shape name"):
        assert abs(accuracy([audio_secrets(item)[secret] for item in scenes]) - 0.5) < 4 * np.sqrt(0.25 / 1000), secret
    assert accuracy([item.bigger.color for item in scenes]) > 0.95
    assert accuracy([item.first.shape for item in scenes]) > 0.95


def test_visual_answers_follow_from_the_visible_facts(scenes: list[Scene]) -> None:
    kinds = {kind.name: kind for kind in sideworld.BASE_KINDS}
    visual = [kind for kind in sideworld.BASE_KINDS if kind.needs == "visual"]
    assert len(visual) == 3
    for item in scenes[:500]:
        left, right = item.things
        assert kinds["bigger_color"].answer(item) == (left.color if left.radius > right.radius else right.color)
        assert kinds["left_shape"].answer(item) == left.shape
        shape = {left.color: left.shape, right.color: right.shape}[item.things[item.asked].color]
        assert kinds["shape_of_color"].answer(item) == shape
        assert all(kind.answer(item) == kind.answer(other_sound(item)) for kind in visual)
        assert kinds["which_sound"].answer(item) != kinds["which_sound"].answer(other_sound(item))
        assert kinds["who_jumped"].answer(item) != kinds["who_jumped"].answer(other_sound(item))
        for kind in sideworld.BASE_KINDS:
            options = kind.options(item)
            assert kind.answer(item) in options
            assert len(set(options)) == len(kind.options(draw_scene(0)))


def test_options_are_equally_likely(scenes: list[Scene]) -> None:
    """No option is favored by its place, so `chance` is what guessing reaches."""
    for kind in sideworld.BASE_KINDS:
        places = np.array([kind.options(item).index(kind.answer(item)) for item in scenes])
        count = len(kind.options(scenes[0]))
        spread = 4 * np.sqrt(1 / count * (1 - 1 / count) / len(scenes))
        assert np.abs(np.bincount(places, minlength=count) / len(scenes) - 1 / count).max() < spread, kind.name


def test_load(world: Path) -> None:
    task = sideworld.Task()
    questions = task.load("test", world)
    assert len(questions) == 2 * len(sideworld.BASE_KINDS)
    assert questions[0].qid == "test_00000.which_sound"
    vocabulary = set(sideworld.vocabulary_texts())
    for question in questions + task.load("train", world):
        assert (world / question.video).is_file()
        assert task.prompt(question) == f"{question.text} Answer with one word."
        assert task.prompt(question) in vocabulary
        assert task.target(question) in vocabulary
        assert task.target(question).isalpha()
        assert task.target(question).islower()
    assert {q.text for q in questions if q.group != "shape_of_color"} == {
        "Which sound is heard?",
        "Which shape jumped when the sound was heard?",
        "Which color is the bigger shape?",
        "Which shape is on the left?",
    }


def test_load_errors(world: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no split named 'tset'; did you mean 'test'"):
        sideworld.Task().load("tset", world)
    with pytest.raises(UserError, match=r"scenes_test\.jsonl: not found"):
        sideworld.Task().load("test", tmp_path)
    write_others(tmp_path)
    with (tmp_path / "sideworld/scenes_test.jsonl").open("a") as file:
        file.write('{"video": "x.mp4", "scene": {"seed": 1}}\n')
    with pytest.raises(UserError, match=r"scenes_test\.jsonl:3: cannot be read .* a sideworld scene"):
        sideworld.Task().load("test", tmp_path / "sideworld")


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
    assert sideworld.Task().score(iter(pairs)) == {
        "which_sound": 0.5,
        "who_jumped": 0.0,
        "bigger_color": 1.0,
        "audio": pytest.approx(1 / 3),
        "visual": 1.0,
        "n": 4,
        "missing": 1,
    }
    assert sideworld.Task().score([]) == {"n": 0, "missing": 0}
    assert sideworld.Task().chance([hum, rise, ring, star]) == {
        "which_sound": 0.125,
        "who_jumped": 0.5,
        "bigger_color": 0.5,
        "audio": pytest.approx(0.25),
        "visual": 0.5,
    }


def test_always_saying_one_thing_scores_at_chance(scenes: list[Scene]) -> None:
    for name, answer, expected in (("which_sound", "hum", 1 / 8), ("who_jumped", "star", 1 / 6)):
        kind = next(kind for kind in sideworld.BASE_KINDS if kind.name == name)
        pairs = [(made_up(name, kind.answer(item)), Prediction("", answer)) for item in scenes]
        spread = 4 * np.sqrt(expected * (1 - expected) / len(scenes))
        assert abs(sideworld.Task().score(pairs)[name] - expected) < spread
