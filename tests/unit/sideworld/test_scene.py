"""The small world: its facts, images, sounds and files, and how the task reads them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from helpers.sideworld_scenes import other_sound

from pave.sideworld import files
from pave.sideworld.files import make_clips, read_scenes, write_clip
from pave.sideworld.scene import (
    COLORS,
    FIRST_JUMP,
    FPS,
    GAP_SECONDS,
    JUMP_PIXELS,
    JUMP_SECONDS,
    LAST_JUMP,
    SAMPLE_RATE,
    SECONDS,
    SHAPES,
    SOUNDS,
    Scene,
    Thing,
    center_at,
    clip_seed,
    draw_scene,
    from_record,
    render,
    synthesize_sound,
    to_record,
)
from pave.tasks import sideworld
from pave.types import UserError

SAMPLED = np.linspace(0, 63, 16).astype(int)


def decode(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Frames uint8[T,H,W,3] and sound float[N] of an mp4."""
    with av.open(str(path)) as file:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])
    with av.open(str(path)) as file:
        assert file.streams.audio[0].rate == SAMPLE_RATE
        assert file.streams.audio[0].channels == 1
        return frames, np.concatenate([frame.to_ndarray()[0] for frame in file.decode(audio=0)])


def height_above_drift(thing: Thing, seconds: np.ndarray) -> np.ndarray:
    """Pixels above where the thing would be if it had not jumped."""
    return thing.y[0] + seconds / SECONDS * (thing.y[1] - thing.y[0]) - center_at(thing, seconds)[1]


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(clip_seed("train", 7, index)) for index in range(4000)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made by two worker processes."""
    root = tmp_path_factory.mktemp("world")
    make_clips(root, clips_train=20, clips_test=4, seed=3, workers=2)
    return root


def test_facts_are_fixed_by_the_seed(scenes: list[Scene]) -> None:
    assert scenes[:50] == [draw_scene(clip_seed("train", 7, index)) for index in range(50)]
    # A change here breaks every made world and the trained tiny base: make both again.
    golden = draw_scene(5)
    assert [(t.shape, t.color, t.radius, t.jump) for t in golden.things] == [
        ("square", "white", 10.12, 0.35),
        ("ring", "purple", 6.76, 6.649),
    ]
    assert (golden.sound, golden.sounding, golden.asked) == ("wobble", 0, 0)


def test_record_round_trip(scenes: list[Scene]) -> None:
    for scene in scenes[:50]:
        assert from_record(json.loads(json.dumps(to_record(scene)))) == scene


def test_splits_are_disjoint(scenes: list[Scene]) -> None:
    train = {clip_seed("train", seed, index) for seed in range(3) for index in range(2000)}
    test = {clip_seed("test", seed, index) for seed in range(3) for index in range(2000)}
    assert len(train) == len(test) == 6000
    assert not train & test
    trained = {replace(scene, seed=0) for scene in scenes}
    held_out = {replace(draw_scene(clip_seed("test", 7, index)), seed=0) for index in range(1000)}
    assert len(trained) == 4000
    assert len(held_out) == 1000
    assert not trained & held_out


def test_ranges(scenes: list[Scene]) -> None:
    for scene in scenes:
        left, right = scene.things
        assert left.shape != right.shape
        assert left.color != right.color
        assert abs(left.jump - right.jump) >= GAP_SECONDS - 1e-9
        small, big = sorted([left.radius, right.radius])
        assert big >= 1.38 * small
        for thing, low, high in ((left, 0, 32), (right, 32, 64)):
            assert FIRST_JUMP <= thing.jump <= LAST_JUMP
            x, y = center_at(thing, np.arange(64) / FPS)
            reach = 1.1 * thing.radius + 1
            assert x.min() - reach >= low
            assert x.max() + reach <= high
            assert y.min() - reach >= 0
            assert y.max() + reach <= 63
    for table, values in (
        (SHAPES, [scene.things[0].shape for scene in scenes]),
        (SOUNDS, [scene.sound for scene in scenes]),
    ):
        assert set(values) == set(table)
    assert LAST_JUMP + JUMP_SECONDS <= 63 / FPS


def test_every_jump_is_in_a_sampled_frame(scenes: list[Scene]) -> None:
    for thing in (thing for scene in scenes for thing in scene.things):
        heights = height_above_drift(thing, SAMPLED / FPS)
        assert heights.max() > 0.5 * JUMP_PIXELS
        assert (height_above_drift(thing, np.arange(64) / FPS) > 0.1).sum() <= np.ceil(JUMP_SECONDS * FPS)


def test_decoded_clip_shows_and_sounds_its_facts(world: Path) -> None:
    for video, scene in read_scenes(world / "scenes_train.jsonl")[:12]:
        frames, wave = decode(world / video)
        assert frames.shape == (64, 64, 64, 3)
        assert len(wave) == SECONDS * SAMPLE_RATE
        assert_shows_facts(scene, frames)
        assert abs(onset(wave) - scene.heard_at) < 0.03


def assert_shows_facts(scene: Scene, frames: np.ndarray) -> None:
    """Each thing, by its color, jumps by 9 pixels or more in a sampled frame when the facts say so."""
    for thing in scene.things:
        is_thing = np.abs(frames.astype(int) - COLORS[thing.color]).sum(-1) < 110
        rows = np.array([np.nonzero(mask)[0].mean() for mask in is_thing])
        ground = np.median(rows)
        hop = SAMPLED[np.argmin(rows[SAMPLED])] / FPS
        assert ground - rows[SAMPLED].min() > 0.5 * JUMP_PIXELS - 2
        assert thing.jump < hop < thing.jump + JUMP_SECONDS
    areas = [(np.abs(frames.astype(int) - COLORS[t.color]).sum(-1) < 110).sum() for t in scene.things]
    extents = [area / filling(thing) for area, thing in zip(areas, scene.things)]
    assert scene.things[int(np.argmax(extents))] == scene.bigger


def filling(thing: Thing) -> float:
    """Area of a shape of radius 1."""
    grid = np.linspace(-1.2, 1.2, 241)
    return float((SHAPES[thing.shape](grid[None], grid[:, None]) < 0).mean() * 2.4**2)


def onset(wave: np.ndarray) -> float:
    """When the wave first passes a quarter of its peak, s."""
    return float(np.argmax(np.abs(wave) > 0.25 * np.abs(wave).max())) / SAMPLE_RATE


@pytest.mark.parametrize("name", list(SOUNDS))
def test_sound_starts_at_the_jump_after_aac(name: str, tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        scene = replace(draw_scene(seed), sound=name)
        assert synthesize_sound(scene).shape == (128_000,)
        assert synthesize_sound(scene).dtype == np.float32
        assert 0.3 < np.abs(synthesize_sound(scene)).max() < 1
        write_clip(scene, tmp_path / "clip.mp4")
        wave = decode(tmp_path / "clip.mp4")[1]
        assert abs(onset(wave) - scene.heard_at) < 0.03
        start = round(scene.heard_at * SAMPLE_RATE)
        silence = np.concatenate([wave[: start - 1600], wave[start + 14_400 : 128_000]])
        assert np.abs(silence).max() < 0.05


def test_sounds_can_be_distinguished_after_aac(world: Path) -> None:
    """The class of every decoded sound is that of the nearest mean spectrogram of clean sounds."""

    def features(scene: Scene, wave: np.ndarray) -> np.ndarray:
        start = round(scene.heard_at * SAMPLE_RATE)
        quarters = wave[start : start + 12_800].reshape(4, 3200)
        power = np.abs(np.fft.rfft(quarters * np.hanning(3200)))[:, 1:1601].reshape(4, 32, 50).mean(-1)
        swing = np.abs(quarters).reshape(4, 40, 80).mean(-1).std(-1) / np.abs(quarters).mean()
        return np.concatenate([(np.log(power + 1) - np.log(power + 1).mean()).ravel(), 10 * swing])

    def mean(name: str) -> np.ndarray:
        examples = [replace(draw_scene(seed), sound=name) for seed in range(8)]
        return np.mean([features(scene, synthesize_sound(scene)) for scene in examples], axis=0)

    means = np.stack([mean(name) for name in SOUNDS])
    decoded_sounds = set()
    for video, scene in read_scenes(world / "scenes_train.jsonl"):
        distances = np.linalg.norm(means - features(scene, decode(world / video)[1]), axis=1)
        assert list(SOUNDS)[np.argmin(distances)] == scene.sound
        decoded_sounds.add(scene.sound)
    assert decoded_sounds == set(SOUNDS)


def test_images_do_not_depend_on_the_sound(tmp_path: Path) -> None:
    for seed in range(5):
        scene = draw_scene(seed)
        assert np.array_equal(render(scene), render(other_sound(scene)))
        write_clip(scene, tmp_path / "a.mp4")
        write_clip(other_sound(scene), tmp_path / "b.mp4")
        (frames_a, wave_a), (frames_b, wave_b) = decode(tmp_path / "a.mp4"), decode(tmp_path / "b.mp4")
        assert np.array_equal(frames_a, frames_b)
        assert not np.array_equal(wave_a, wave_b)


def test_a_second_run_restores_a_deleted_clip_to_the_byte(world: Path) -> None:
    clips = sorted((world / "videos").iterdir())
    assert len(clips) == 24
    before = {clip: (clip.read_bytes(), clip.stat().st_mtime_ns) for clip in clips}
    clips[5].unlink()
    make_clips(world, clips_train=20, clips_test=4, seed=3, workers=1)
    assert sorted((world / "videos").iterdir()) == clips
    assert clips[5].read_bytes() == before[clips[5]][0]
    assert all(clip.stat().st_mtime_ns == before[clip][1] for clip in clips if clip != clips[5])


def test_another_world_is_refused(world: Path) -> None:
    with pytest.raises(UserError, match="holds another world"):
        make_clips(world, clips_train=20, clips_test=4, seed=4, workers=1)


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Scene) -> np.ndarray:
        raise OSError("disk full")

    monkeypatch.setattr(files, "synthesize_sound", fail)
    with pytest.raises(OSError, match="disk full"):
        write_clip(draw_scene(0), tmp_path / "clip.mp4")
    assert list(tmp_path.iterdir()) == []


def test_a_killed_run_leaves_only_whole_clips_and_can_be_finished(tmp_path: Path) -> None:
    call = f"make_clips(Path({str(tmp_path)!r}), 60, 0, 0, 1)"
    code = f"from pathlib import Path; from pave.sideworld.files import make_clips; {call}"
    run = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    while not (tmp_path / "videos/train_00003.mp4").exists():
        assert run.poll() is None
        time.sleep(0.005)
    run.kill()
    run.wait()
    clips = list(tmp_path.glob("videos/*.mp4"))
    assert 4 <= len(clips) < 60
    for clip in clips:
        assert decode(clip)[0].shape == (64, 64, 64, 3)
    make_clips(tmp_path, clips_train=60, clips_test=0, seed=0, workers=1)
    assert len(sideworld.Task().load("train", tmp_path)) == 60 * len(sideworld.BASE_KINDS)
