"""What the further side-channels of the small embedded world show, and that nothing else tells it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.sideworld_scenes import visible_labels

from pave.media import rgbd
from pave.media.video import read_clip
from pave.sideworld.channels import CHANNELS, FAR, KEY_FRAMES, NEAR, behind, with_channels
from pave.sideworld.files import make, read_scenes, write, write_behind, write_depth
from pave.sideworld.scene import (
    COLORS,
    FPS,
    SOUND_SECONDS,
    Flash,
    Scene,
    clip_seed,
    from_record,
    render,
    scene,
    to_record,
)
from pave.sideworld.scene import sound as wave_of
from pave.tasks import sideworld
from pave.types import UserError


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [with_channels(scene(clip_seed("train", 7, index)), CHANNELS) for index in range(4000)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    make(root, clips_train=6, clips_test=2, seed=3, workers=1, channels=CHANNELS)
    return root


def other_flashes(one: Scene) -> Scene:
    """Other colors at other times, still between the key frames."""
    names = list(COLORS)
    dark = tuple(frame for frame in range(0, 64, 3) if frame not in KEY_FRAMES)
    return replace(one, flashes=tuple(Flash(names[names.index(flash.color) - 1], dark) for flash in one.flashes))


def test_audio_alone_is_the_world_as_it_was(tmp_path: Path) -> None:
    plain = [scene(clip_seed("train", 3, index)) for index in range(20)]
    assert [with_channels(one, ["audio"]) for one in plain] == plain
    assert set(to_record(plain[0])) == {
        *("seed", "background", "things", "asked", "sounding", "sound", "loudness"),
    }
    make(tmp_path, clips_train=1, clips_test=0, seed=3, workers=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scenes_test.jsonl", "scenes_train.jsonl", "videos"]


def test_channels_change_neither_sound_nor_key_frames(scenes: list[Scene]) -> None:
    for one in scenes[:20]:
        plain = scene(one.seed)
        assert with_channels(one, ["audio"]) == plain
        assert np.array_equal(wave_of(one), wave_of(plain))
        assert np.array_equal(render(one, KEY_FRAMES), render(plain, KEY_FRAMES))
        lit = sorted(frame for flash in one.flashes for frame in flash.frames)
        changed = (render(one) != render(plain)).any(axis=(1, 2, 3))
        assert np.flatnonzero(changed).tolist() == lit


def test_key_frames_are_those_of_the_base() -> None:
    assert np.linspace(0, 63, 16).astype(int).tolist() == KEY_FRAMES


def test_record_round_trip(scenes: list[Scene]) -> None:
    for one in scenes[:50]:
        assert from_record(json.loads(json.dumps(to_record(one)))) == one


def test_ranges(scenes: list[Scene]) -> None:
    for one in scenes:
        for flash, thing in zip(one.flashes, one.things, strict=True):
            assert len(flash.frames) >= 4
            assert not set(flash.frames) & set(KEY_FRAMES)
            assert all(thing.jump <= frame / FPS <= thing.jump + SOUND_SECONDS for frame in flash.frames)
        assert one.flashes[0].color != one.flashes[1].color
        assert one.backs[0] != one.backs[1]
        assert sorted(one.metres) == [NEAR, FAR]


def deviation(a: list[str], b: list[str]) -> float:
    """Chi-square of two labels, as standard deviations of a normal variable (Wilson and Hilferty).

    Some 400 pairs are looked at: by chance one of them passes 4 in one suite of 80.
    """
    index_a, index_b = (np.unique(labels, return_inverse=True)[1] for labels in (a, b))
    seen = np.zeros((index_a.max() + 1, index_b.max() + 1))
    np.add.at(seen, (index_a, index_b), 1)
    expected = seen.sum(1, keepdims=True) * seen.sum(0, keepdims=True) / seen.sum()
    freedom = (len(seen) - 1) * (len(seen[0]) - 1)
    spread = 2 / (9 * freedom)
    return float(((((seen - expected) ** 2 / expected).sum() / freedom) ** (1 / 3) - 1 + spread) / np.sqrt(spread))


def test_the_deviation_finds_a_leak(scenes: list[Scene]) -> None:
    """In one scene of eight the first flash tells the nearer thing."""
    nearer = [str(one.metres[0] < one.metres[1]) for one in scenes]
    leaky = [
        x if i % 8 else str(one.flashes[0].color in ("red", "blue", "white"))
        for i, (x, one) in enumerate(zip(nearer, scenes))
    ]
    flashes = [one.flashes[0].color for one in scenes]
    assert deviation(nearer, flashes) < 4 < deviation(leaky, flashes)


def hidden_facts(one: Scene) -> dict[str, str]:
    """What the answers hang on, by channel and fact."""
    asked, heard = one.things[one.asked], one.things[one.sounding]
    nearer = one.things[int(np.argmin(one.metres))]
    return {
        "dense left": one.flashes[0].color,
        "dense right": one.flashes[1].color,
        "dense first": one.flashes[one.things.index(one.first)].color,
        "exo left back": one.backs[0],
        "exo right back": one.backs[1],
        "exo bigger back": one.backs[one.things.index(one.bigger)],
        "depth side": str(one.metres[0] < one.metres[1]),
        "depth is bigger": str(nearer is one.bigger),
        "depth is first": str(nearer is one.first),
        "depth is asked": str(nearer is asked),
        "depth by shape name": str(nearer.shape == min(thing.shape for thing in one.things)),
        "audio sound": one.sound,
        "audio side": str(one.sounding),
        "audio is first": str(heard is one.first),
        "audio by shape name": str(heard.shape == min(thing.shape for thing in one.things)),
    }


def test_no_visible_fact_tells_what_a_channel_shows(scenes: list[Scene]) -> None:
    facts = [hidden_facts(one) for one in scenes]
    labels = [visible_labels(one) | {"asked color": one.things[one.asked].color} for one in scenes]
    for secret in facts[0]:
        for label in labels[0]:
            assert deviation([row[secret] for row in facts], [row[label] for row in labels]) < 4, (secret, label)


def test_no_channel_tells_what_another_shows(scenes: list[Scene]) -> None:
    facts = [hidden_facts(one) for one in scenes]
    names = list(facts[0])
    for a in names:
        for b in names[names.index(a) :]:
            if a.split()[0] != b.split()[0]:
                assert deviation([row[a] for row in facts], [row[b] for row in facts]) < 4, (a, b)


def test_the_flash_that_was_heard_needs_both_channels(scenes: list[Scene]) -> None:
    """Each light flickers during one jump and the sound is at either: light leaves two answers and sound alone six."""
    kind = next(kind for kind in sideworld.EXTRA_KINDS if kind.name == "heard_flash")
    answers = [kind.answer(one) for one in scenes]
    for one, answer in zip(scenes, answers):
        lit = [flash.color for flash in one.flashes if one.heard_at <= flash.frames[0] / FPS < one.heard_at + 0.8]
        assert lit == [answer]
    left = [str(answer == one.flashes[0].color) for one, answer in zip(scenes, answers)]
    assert abs(np.mean([x == "True" for x in left]) - 0.5) < 4 * np.sqrt(0.25 / len(scenes))
    seen = [
        visible_labels(one)
        | {f"flash {i}": flash.color for i, flash in enumerate(one.flashes)}
        | {f"frames {i}": str(len(flash.frames)) for i, flash in enumerate(one.flashes)}
        | {f"start {i}": str(flash.frames[0] // 8) for i, flash in enumerate(one.flashes)}
        for one in scenes
    ]
    for label in seen[0]:
        assert deviation(left, [row[label] for row in seen]) < 4, label
    heard = [
        {"sound": one.sound, "side": str(one.sounding), "first": str(one.things[one.sounding] is one.first)}
        | {"when": str(int(one.heard_at))}
        | visible_labels(one)
        for one in scenes
    ]
    for label in heard[0]:
        assert deviation(answers, [row[label] for row in heard]) < 4, label


def test_files_show_their_facts(world: Path) -> None:
    for video, one in read_scenes(world / "scenes_train.jsonl"):
        name = Path(video).stem
        frames = read_clip(world / video, 64).frames.astype(int)
        sky = frames[:, :12].mean(axis=(1, 2))
        for flash in one.flashes:
            assert np.abs(sky[list(flash.frames)] - COLORS[flash.color]).max() < 20
        dark = [frame for frame in range(64) if all(frame not in flash.frames for flash in one.flashes)]
        assert np.abs(sky[dark] - one.background).max() < 20
        others = read_clip(world / f"exo/{name}/behind.mp4", 64).frames.astype(int)
        assert np.abs(others[:, :12].mean(axis=(1, 2)) - one.background).max() < 20
        views = rgbd.frames(world / "depth" / name)
        assert [view.color.name for view in views] == ["0.png", "1.png", "2.png", "3.png"]
        metres = np.asarray(rgbd.read_depth(views[0].depth)) / rgbd.depth_scale(world / "depth" / name)
        for thing, back, distance in zip(one.things, one.backs, one.metres):
            near = np.abs(others[0] - COLORS[back]).sum(-1) < 110
            assert abs(63 - np.nonzero(near)[1].mean() - thing.x[0]) < 1.5
            assert abs(metres[round(thing.y[0]), round(thing.x[0])] - distance) < 0.001


def test_pictures_tell_nothing_of_what_only_a_channel_shows(tmp_path: Path) -> None:
    for seed in range(3):
        one = with_channels(scene(seed), CHANNELS)
        write(one, tmp_path / "a.mp4")
        write(other_flashes(one), tmp_path / "b.mp4")
        a, b = (read_clip(tmp_path / name, 64).frames for name in ("a.mp4", "b.mp4"))
        assert np.array_equal(a[KEY_FRAMES], b[KEY_FRAMES])
        assert not np.array_equal(a, b)
        write_depth(one, tmp_path / "c")
        write_depth(replace(one, metres=one.metres[::-1]), tmp_path / "d")
        views = list(zip(rgbd.frames(tmp_path / "c"), rgbd.frames(tmp_path / "d"), strict=True))
        assert all(c.color.read_bytes() == d.color.read_bytes() for c, d in views)
        assert all(np.array_equal(c.pose, views[0][0].pose) for c, _ in views)
        assert not any(c.depth.read_bytes() == d.depth.read_bytes() for c, d in views)


def test_the_camera_behind_shows_the_other_sides_and_no_flash(tmp_path: Path) -> None:
    one = with_channels(scene(4), CHANNELS)
    painted = replace(one, things=tuple(replace(thing, color="white") for thing in one.things))
    assert np.array_equal(behind(one), behind(other_flashes(painted)))
    write_behind(one, tmp_path / "behind.mp4")
    seen, meant = (
        frames.reshape(64, 16, 4, 16, 4, 3).mean(axis=(2, 4))  # without the grain, which colors at half size blur
        for frames in (read_clip(tmp_path / "behind.mp4", 64).frames, behind(one))
    )
    assert np.abs(seen - meant).mean() < 3
    assert np.abs(seen - meant[:, :, ::-1]).mean() > 6


def test_a_second_run_restores_what_was_deleted_to_the_byte(world: Path) -> None:
    files = sorted(path for path in world.rglob("*") if path.is_file())
    before = {path: path.read_bytes() for path in files}
    for path in [*sorted(world.glob("exo/*/behind.mp4"))[:2], *sorted(world.glob("depth/*/*"))[:13]]:
        path.unlink()
    next(iter(sorted(world.glob("depth/*")))).rmdir()
    make(world, clips_train=6, clips_test=2, seed=3, workers=1, channels=CHANNELS)
    assert {path: path.read_bytes() for path in world.rglob("*") if path.is_file()} == before


def test_other_channels_are_another_world(world: Path) -> None:
    with pytest.raises(UserError, match="holds another world"):
        make(world, clips_train=6, clips_test=2, seed=3, workers=1, channels=["dense"])


@pytest.mark.parametrize(
    ("channels", "kinds"),
    [
        (["audio"], {"which_sound", "who_jumped"}),
        (["dense"], {"first_flash"}),
        (["exo"], {"bigger_back", "left_back"}),
        (["depth"], {"nearer_shape", "nearer_color"}),
        (["dense", "audio"], {"which_sound", "who_jumped", "first_flash", "heard_flash"}),
    ],
)
def test_questions_are_about_the_channels_of_a_clip(channels: list[str], kinds: set[str]) -> None:
    asked = {question.group for question in sideworld.scene_questions(with_channels(scene(0), channels))}
    assert asked == kinds | {"bigger_color", "shape_of_color", "left_shape"}


def test_answers(world: Path) -> None:
    records = read_scenes(world / "scenes_test.jsonl")
    questions = {question.qid: question for question in sideworld.Task().load("test", world)}
    assert len(questions) == 2 * (len(sideworld.BASE_KINDS) + len(sideworld.EXTRA_KINDS))
    assert set(sideworld.Task().chance(list(questions.values()))) >= {
        "audio",
        "visual",
        "dense",
        "exo",
        "depth",
        "audio+dense",
    }
    for video, one in records:
        answers = {q.group: q.answers[0] for q in questions.values() if q.video == video}
        nearer = one.things[one.metres[0] > one.metres[1]]
        assert answers["left_back"] == one.backs[0]
        assert answers["bigger_back"] == one.backs[one.things[0].radius < one.things[1].radius]
        assert (answers["nearer_shape"], answers["nearer_color"]) == (nearer.shape, nearer.color)
        assert answers["first_flash"] == one.flashes[one.first is one.things[1]].color


def test_the_split_to_begin_with_has_no_visual_controls(world: Path) -> None:
    controls = {"bigger_color", "shape_of_color", "left_shape"}
    assert sideworld.Task().load("channels", world) == [q for q in sideworld.Task().load("train", world) if q.group not in controls]
    assert len(sideworld.Task().load("channels", world)) == 6 * (2 + len(sideworld.EXTRA_KINDS))


def test_options_are_equally_likely_and_in_order(scenes: list[Scene]) -> None:
    for kind in sideworld.EXTRA_KINDS:
        count = len(kind.options(scenes[0]))
        places = [kind.options(one).index(kind.answer(one)) for one in scenes]
        assert all(list(kind.options(one)) == sorted(set(kind.options(one))) for one in scenes[:200])
        spread = 4 * np.sqrt(1 / count * (1 - 1 / count) / len(scenes))
        assert np.abs(np.bincount(places, minlength=count) / len(scenes) - 1 / count).max() < spread, kind.name
        guess = sideworld.Task().chance([question_of(kind.name)])
        assert guess == {kind.name: pytest.approx(1 / count), kind.needs: pytest.approx(1 / count)}


def question_of(group: str) -> sideworld.Question:
    return next(q for q in sideworld.scene_questions(with_channels(scene(0), CHANNELS)) if q.group == group)
