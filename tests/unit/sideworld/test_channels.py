"""The further side-channels of the small world show their facts, and nothing else gives them away."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.sideworld_scenes import visible_labels

from pave.media import rgbd
from pave.media.video import read_clip
from pave.sideworld.channels import CHANNELS, FAR, KEY_FRAMES, NEAR, render_behind, with_channels
from pave.sideworld.files import make_clips, read_scenes, write_behind, write_clip, write_depth
from pave.sideworld.scene import (
    COLORS,
    FPS,
    SOUND_SECONDS,
    Flash,
    Scene,
    clip_seed,
    draw_scene,
    from_record,
    render,
    to_record,
)
from pave.sideworld.scene import synthesize_sound as wave_of
from pave.tasks import sideworld
from pave.types import UserError


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [with_channels(draw_scene(clip_seed("train", 7, index)), CHANNELS) for index in range(4000)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    make_clips(root, clips_train=6, clips_test=2, seed=3, workers=1, channels=CHANNELS)
    return root


def other_flashes(scene: Scene) -> Scene:
    """Other colors at other times, still between the key frames."""
    names = list(COLORS)
    dark = tuple(frame for frame in range(0, 64, 3) if frame not in KEY_FRAMES)
    return replace(scene, flashes=tuple(Flash(names[names.index(flash.color) - 1], dark) for flash in scene.flashes))


def test_audio_alone_is_the_world_as_it_was(tmp_path: Path) -> None:
    plain = [draw_scene(clip_seed("train", 3, index)) for index in range(20)]
    assert [with_channels(scene, ["audio"]) for scene in plain] == plain
    assert {*to_record(plain[0])} == {"seed", "background", "things", "asked", "sounding", "sound", "loudness"}
    make_clips(tmp_path, clips_train=1, clips_test=0, seed=3, workers=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scenes_test.jsonl", "scenes_train.jsonl", "videos"]


def test_channels_change_neither_sound_nor_key_frames(scenes: list[Scene]) -> None:
    for scene in scenes[:20]:
        plain = draw_scene(scene.seed)
        assert with_channels(scene, ["audio"]) == plain
        assert np.array_equal(wave_of(scene), wave_of(plain))
        assert np.array_equal(render(scene, KEY_FRAMES), render(plain, KEY_FRAMES))
        lit = sorted(frame for flash in scene.flashes for frame in flash.frames)
        changed = (render(scene) != render(plain)).any(axis=(1, 2, 3))
        assert np.flatnonzero(changed).tolist() == lit


def test_key_frames_are_those_of_the_base() -> None:
    assert np.linspace(0, 63, 16).astype(int).tolist() == KEY_FRAMES


def test_record_round_trip(scenes: list[Scene]) -> None:
    for scene in scenes[:50]:
        assert from_record(json.loads(json.dumps(to_record(scene)))) == scene


def test_ranges(scenes: list[Scene]) -> None:
    for scene in scenes:
        for flash, thing in zip(scene.flashes, scene.things, strict=True):
            assert len(flash.frames) >= 4
            assert not set(flash.frames) & set(KEY_FRAMES)
            assert all(thing.jump <= frame / FPS <= thing.jump + SOUND_SECONDS for frame in flash.frames)
        assert scene.flashes[0].color != scene.flashes[1].color
        assert scene.backs[0] != scene.backs[1]
        assert sorted(scene.metres) == [NEAR, FAR]


def deviation(a: list[str], b: list[str]) -> float:
    """Chi-square of two labels, as standard deviations of a normal variable (Wilson and Hilferty).

    Some 400 pairs are looked at: by chance one of them passes 4 in one suite of 80.
    """
    index_a, index_b = (np.unique(labels, return_inverse=True)[1] for labels in (a, b))
    counts = np.zeros((index_a.max() + 1, index_b.max() + 1))
    np.add.at(counts, (index_a, index_b), 1)
    expected = counts.sum(1, keepdims=True) * counts.sum(0, keepdims=True) / counts.sum()
    freedom = (len(counts) - 1) * (len(counts[0]) - 1)
    spread = 2 / (9 * freedom)
    return float(((((counts - expected) ** 2 / expected).sum() / freedom) ** (1 / 3) - 1 + spread) / np.sqrt(spread))


def test_the_deviation_finds_a_leak(scenes: list[Scene]) -> None:
    """In one scene of eight the first flash tells the nearer thing."""
    nearer = [str(scene.metres[0] < scene.metres[1]) for scene in scenes]
    leaky = [
        x if i % 8 else str(scene.flashes[0].color in ("red", "blue", "white"))
        for i, (x, scene) in enumerate(zip(nearer, scenes))
    ]
    flashes = [scene.flashes[0].color for scene in scenes]
    assert deviation(nearer, flashes) < 4 < deviation(leaky, flashes)


def hidden_facts(scene: Scene) -> dict[str, str]:
    """The facts that decide the answers, by channel."""
    asked, heard = scene.things[scene.asked], scene.things[scene.sounding]
    nearer = scene.things[int(np.argmin(scene.metres))]
    return {
        "dense left": scene.flashes[0].color,
        "dense right": scene.flashes[1].color,
        "dense first": scene.flashes[scene.things.index(scene.first)].color,
        "exo left back": scene.backs[0],
        "exo right back": scene.backs[1],
        "exo bigger back": scene.backs[scene.things.index(scene.bigger)],
        "depth side": str(scene.metres[0] < scene.metres[1]),
        "depth is bigger": str(nearer is scene.bigger),
        "depth is first": str(nearer is scene.first),
        "depth is asked": str(nearer is asked),
        "depth by shape name": str(nearer.shape == min(thing.shape for thing in scene.things)),
        "audio sound": scene.sound,
        "audio side": str(scene.sounding),
        "audio is first": str(heard is scene.first),
        "audio by shape name": str(heard.shape == min(thing.shape for thing in scene.things)),
    }


def test_no_visible_fact_depends_on_a_channel(scenes: list[Scene]) -> None:
    facts = [hidden_facts(scene) for scene in scenes]
    labels = [visible_labels(scene) | {"asked color": scene.things[scene.asked].color} for scene in scenes]
    for secret in facts[0]:
        for label in labels[0]:
            assert deviation([row[secret] for row in facts], [row[label] for row in labels]) < 4, (secret, label)


def test_no_channel_depends_on_another(scenes: list[Scene]) -> None:
    facts = [hidden_facts(scene) for scene in scenes]
    names = list(facts[0])
    for a in names:
        for b in names[names.index(a) :]:
            if a.split()[0] != b.split()[0]:
                assert deviation([row[a] for row in facts], [row[b] for row in facts]) < 4, (a, b)


def test_the_flash_that_was_heard_needs_both_channels(scenes: list[Scene]) -> None:
    """Each light flickers during one jump and the sound is at either: light leaves two answers and sound alone six."""
    kind = next(kind for kind in sideworld.EXTRA_KINDS if kind.name == "heard_flash")
    answers = [kind.answer(scene) for scene in scenes]
    for scene, answer in zip(scenes, answers):
        lit = [flash.color for flash in scene.flashes if scene.heard_at <= flash.frames[0] / FPS < scene.heard_at + 0.8]
        assert lit == [answer]
    left = [str(answer == scene.flashes[0].color) for scene, answer in zip(scenes, answers)]
    assert abs(np.mean([x == "True" for x in left]) - 0.5) < 4 * np.sqrt(0.25 / len(scenes))
    light_labels = [
        visible_labels(scene)
        | {f"flash {i}": flash.color for i, flash in enumerate(scene.flashes)}
        | {f"frames {i}": str(len(flash.frames)) for i, flash in enumerate(scene.flashes)}
        | {f"start {i}": str(flash.frames[0] // 8) for i, flash in enumerate(scene.flashes)}
        for scene in scenes
    ]
    for label in light_labels[0]:
        assert deviation(left, [row[label] for row in light_labels]) < 4, label
    sound_labels = [
        {"sound": scene.sound, "side": str(scene.sounding), "first": str(scene.things[scene.sounding] is scene.first)}
        | {"when": str(int(scene.heard_at))}
        | visible_labels(scene)
        for scene in scenes
    ]
    for label in sound_labels[0]:
        assert deviation(answers, [row[label] for row in sound_labels]) < 4, label


def test_files_show_their_facts(world: Path) -> None:
    for video, scene in read_scenes(world / "scenes_train.jsonl"):
        name = Path(video).stem
        frames = read_clip(world / video, 64).frames.astype(int)
        sky = frames[:, :12].mean(axis=(1, 2))
        for flash in scene.flashes:
            assert np.abs(sky[list(flash.frames)] - COLORS[flash.color]).max() < 20
        dark = [frame for frame in range(64) if all(frame not in flash.frames for flash in scene.flashes)]
        assert np.abs(sky[dark] - scene.background).max() < 20
        behind_frames = read_clip(world / f"exo/{name}/behind.mp4", 64).frames.astype(int)
        assert np.abs(behind_frames[:, :12].mean(axis=(1, 2)) - scene.background).max() < 20
        views = rgbd.list_frames(world / "depth" / name)
        assert [view.color.name for view in views] == ["0.png", "1.png", "2.png", "3.png"]
        metres = np.asarray(rgbd.read_depth(views[0].depth)) / rgbd.read_depth_scale(world / "depth" / name)
        for thing, back, distance in zip(scene.things, scene.backs, scene.metres):
            is_thing = np.abs(behind_frames[0] - COLORS[back]).sum(-1) < 110
            assert abs(63 - np.nonzero(is_thing)[1].mean() - thing.x[0]) < 1.5
            assert abs(metres[round(thing.y[0]), round(thing.x[0])] - distance) < 0.001


def test_images_do_not_depend_on_what_only_a_channel_shows(tmp_path: Path) -> None:
    for seed in range(3):
        scene = with_channels(draw_scene(seed), CHANNELS)
        write_clip(scene, tmp_path / "a.mp4")
        write_clip(other_flashes(scene), tmp_path / "b.mp4")
        a, b = (read_clip(tmp_path / name, 64).frames for name in ("a.mp4", "b.mp4"))
        assert np.array_equal(a[KEY_FRAMES], b[KEY_FRAMES])
        assert not np.array_equal(a, b)
        write_depth(scene, tmp_path / "c")
        write_depth(replace(scene, metres=scene.metres[::-1]), tmp_path / "d")
        views = list(zip(rgbd.list_frames(tmp_path / "c"), rgbd.list_frames(tmp_path / "d"), strict=True))
        assert all(c.color.read_bytes() == d.color.read_bytes() for c, d in views)
        assert all(np.array_equal(c.pose, views[0][0].pose) for c, _ in views)
        assert not any(c.depth.read_bytes() == d.depth.read_bytes() for c, d in views)


def test_the_camera_behind_shows_the_other_sides_and_no_flash(tmp_path: Path) -> None:
    scene = with_channels(draw_scene(4), CHANNELS)
    painted = replace(scene, things=tuple(replace(thing, color="white") for thing in scene.things))
    assert np.array_equal(render_behind(scene), render_behind(other_flashes(painted)))
    write_behind(scene, tmp_path / "behind.mp4")
    actual, expected = (
        frames.reshape(64, 16, 4, 16, 4, 3).mean(axis=(2, 4))  # without the grain, which colors at half size blur
        for frames in (read_clip(tmp_path / "behind.mp4", 64).frames, render_behind(scene))
    )
    assert np.abs(actual - expected).mean() < 3
    assert np.abs(actual - expected[:, :, ::-1]).mean() > 6


def test_a_second_run_restores_what_was_deleted_to_the_byte(world: Path) -> None:
    files = sorted(path for path in world.rglob("*") if path.is_file())
    before = {path: path.read_bytes() for path in files}
    for path in [*sorted(world.glob("exo/*/behind.mp4"))[:2], *sorted(world.glob("depth/*/*"))[:13]]:
        path.unlink()
    next(iter(sorted(world.glob("depth/*")))).rmdir()
    make_clips(world, clips_train=6, clips_test=2, seed=3, workers=1, channels=CHANNELS)
    assert {path: path.read_bytes() for path in world.rglob("*") if path.is_file()} == before


def test_other_channels_are_another_world(world: Path) -> None:
    with pytest.raises(UserError, match="holds another world"):
        make_clips(world, clips_train=6, clips_test=2, seed=3, workers=1, channels=["dense"])


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
    asked = {question.group for question in sideworld.scene_questions(with_channels(draw_scene(0), channels))}
    assert asked == kinds | {"bigger_color", "shape_of_color", "left_shape"}


def test_answers(world: Path) -> None:
    records = read_scenes(world / "scenes_test.jsonl")
    questions = {question.qid: question for question in sideworld.Task().load("test", world)}
    assert len(questions) == 2 * (len(sideworld.BASE_KINDS) + len(sideworld.EXTRA_KINDS))
    chance = sideworld.Task().chance(list(questions.values()))
    assert {*chance} >= {"audio", "visual", "dense", "exo", "depth", "audio+dense"}
    for video, scene in records:
        answers = {q.group: q.answers[0] for q in questions.values() if q.video == video}
        nearer = scene.things[scene.metres[0] > scene.metres[1]]
        assert answers["left_back"] == scene.backs[0]
        assert answers["bigger_back"] == scene.backs[scene.things[0].radius < scene.things[1].radius]
        assert (answers["nearer_shape"], answers["nearer_color"]) == (nearer.shape, nearer.color)
        assert answers["first_flash"] == scene.flashes[scene.first is scene.things[1]].color


def test_the_split_to_begin_with_has_no_visual_controls(world: Path) -> None:
    controls = {"bigger_color", "shape_of_color", "left_shape"}
    questions = sideworld.Task().load("channels", world)
    assert questions == [q for q in sideworld.Task().load("train", world) if q.group not in controls]
    assert len(questions) == 6 * (2 + len(sideworld.EXTRA_KINDS))


def test_options_are_equally_likely_and_in_order(scenes: list[Scene]) -> None:
    for kind in sideworld.EXTRA_KINDS:
        count = len(kind.options(scenes[0]))
        places = [kind.options(scene).index(kind.answer(scene)) for scene in scenes]
        assert all(list(kind.options(scene)) == sorted(set(kind.options(scene))) for scene in scenes[:200])
        spread = 4 * np.sqrt(1 / count * (1 - 1 / count) / len(scenes))
        assert np.abs(np.bincount(places, minlength=count) / len(scenes) - 1 / count).max() < spread, kind.name
        guess = sideworld.Task().chance([question_of(kind.name)])
        assert guess == {kind.name: pytest.approx(1 / count), kind.needs: pytest.approx(1 / count)}


def question_of(group: str) -> sideworld.Question:
    return next(q for q in sideworld.scene_questions(with_channels(draw_scene(0), CHANNELS)) if q.group == group)
