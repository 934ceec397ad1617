"""From videos to dense and exo tokens: which frames, their times, the towers' tokens, names, faults."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.media_files import BUNNY, cut, every_frame, tone, write_clip
from torch.nn import functional as F

from pave import config
from pave.checkpoints import build
from pave.config import BaseConfig
from pave.data import extraction
from pave.media.frame_sampling import uniform
from pave.models.encoders import languagebind_video
from pave.sides import dense, exo
from pave.sides.base import SideChannel, get_side
from pave.tasks.base import get_task
from pave.types import Clip, SideTokens, UserError

BASE = Path(config.resolve("asset:sideworld/base"))
TAKE_VIDEO = "takes/{}/frame_aligned_videos/downscaled/448/{}"
DENSE, EXO = dense.SideChannel(), exo.SideChannel()
DEFAULT = dense.Options()
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def languagebind() -> languagebind_video.Tower:
    torch.manual_seed(0)
    return languagebind_video.Tower(width=32, inner=48, depth=3, heads=2, patch=14, edge=4).eval()


def encode_dense(path: Path, options: dense.Options = DEFAULT) -> SideTokens:
    encoder = DENSE.build(BASE, options, CPU)
    return DENSE.encode(DENSE.reader(encoder, options)(path), encoder, options)


def assert_times(tokens: SideTokens, seconds: np.ndarray, atol: float = 1e-6) -> None:
    assert tokens.seconds is not None
    np.testing.assert_allclose(tokens.seconds, seconds, atol=atol)


def test_siglip_on_a_real_clip() -> None:
    """5.28 s give ten frames; each token is the mean of a quarter of the base's own grid."""
    base = build.load_base(BaseConfig(path=str(BASE), dtype="float32"))
    tokens, index, frames = encode_dense(BUNNY), uniform(132, 10), every_frame(BUNNY)
    pixels = base.preprocess(np.stack([frames[i] for i in index]))
    with torch.no_grad():
        grid = base.hf.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1]
    quarters = grid.view(10, 2, 2, 2, 2, 96).mean((2, 4)).view(10, 4, 96)
    torch.testing.assert_close(tokens.x, quarters, atol=1e-5, rtol=0)
    assert_times(tokens, index / 25)


def test_languagebind_on_a_real_clip(languagebind: languagebind_video.Tower) -> None:
    """21 frames are asked, two chunks of eight are complete; a worker sends half precision."""
    options = dense.Options(tower="languagebind", fps=4.0)
    assert DENSE.extractor(options) == "languagebind_video"
    clip = DENSE.reader(languagebind, options)(BUNNY)
    assert (clip.frames.dtype, clip.frames.shape) == (np.float16, (16, 3, 56, 56))
    tokens, index = DENSE.encode(clip, languagebind, options), uniform(132, 16)
    assert (tokens.x.shape, tokens.x.dtype, tokens.x.requires_grad) == ((16, 4, 32), torch.float32, False)
    assert_times(tokens, index / 25)
    all_frames = every_frame(BUNNY)
    frames = torch.stack([languagebind_video.normalized_frame(all_frames[i], 56) for i in index[8:]])
    with torch.no_grad():
        grids = languagebind(frames.half().float()[None])[0, :, 1:].transpose(1, 2).unflatten(2, (4, 4))
    torch.testing.assert_close(tokens.x[8:], F.avg_pool2d(grids, 2).flatten(2).transpose(1, 2), atol=1e-5, rtol=0)


def test_batches_make_no_difference(languagebind: languagebind_video.Tower, monkeypatch: pytest.MonkeyPatch) -> None:
    options = dense.Options(tower="languagebind", fps=8.0)
    clip = DENSE.reader(languagebind, options)(BUNNY)
    expected = DENSE.encode(clip, languagebind, options).x
    assert len(expected) == 40
    for batch in (1, 8, 24):
        monkeypatch.setattr("pave.sides._frame_features.BATCH", batch)
        torch.testing.assert_close(DENSE.encode(clip, languagebind, options).x, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("side", [DENSE, EXO])
def test_readers_run_in_other_processes_and_refuse_bad_videos(side: SideChannel, tmp_path: Path) -> None:
    encoder = side.build(BASE, side.options_type(), CPU)
    pickled = pickle.dumps(side.reader(encoder, side.options_type()))
    assert len(pickled) < 2000
    read = pickle.loads(pickled)
    clip: Clip = read(BUNNY)
    assert (clip.frames.dtype, clip.frames.shape[1:]) == (np.uint8, (64, 64, 3))

    (tmp_path / "text.mp4").write_text("no video")
    sound = write_clip(tmp_path / "sound.mp4", codec=None, sound=tone(1))
    damaged = cut(write_clip(tmp_path / "a.mp4", container={"movflags": "faststart"}))
    for path in (tmp_path, tmp_path / "none.mp4", tmp_path / "text.mp4", sound, damaged):
        with pytest.raises(UserError, match=path.name):
            read(path)


def test_short_videos(tmp_path: Path, languagebind: languagebind_video.Tower) -> None:
    """One frame at least, or a chunk; more only where asked, then some come twice."""
    one_frame = write_clip(tmp_path / "one.mp4", 1)
    assert encode_dense(one_frame).x.shape == (1, 4, 96)
    tokens = encode_dense(one_frame, dense.Options(least=3))
    assert tokens.x.shape == (3, 4, 96)
    assert torch.equal(tokens.x[0], tokens.x[2])

    options = dense.Options(tower="languagebind")
    tokens = DENSE.encode(DENSE.reader(languagebind, options)(one_frame), languagebind, options)
    assert tokens.x.shape == (8, 4, 32)
    assert_times(tokens, np.zeros(8), atol=0)

    one_second = write_clip(tmp_path / "b.mp4", 25)
    assert len(encode_dense(one_second).x) == 2
    assert len(encode_dense(one_second, dense.Options(least=7, pool=1)).x) == 7
    assert encode_dense(one_second, dense.Options(pool=3)).x.shape == (2, 9, 96)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_uneven_frames_keep_their_times(suffix: str, tmp_path: Path) -> None:
    """40 frames over a minute, though the Matroska file states 25 a second."""
    times = np.arange(40) * 1500
    path = write_clip(tmp_path / f"a.{suffix}", 40, times=times.tolist())
    assert_times(encode_dense(path, dense.Options(fps=0.5)), times[uniform(40, 29)] / 1000, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("dense", "fps=0", "fps=0 pool=2: both must be above 0"),
        ("dense", "tower=siglup", "did you mean 'siglip'"),
        ("exo", "frames=0", "frames=0: must be above 0"),
        ("scene3d", "views=0", "views=0"),
        ("scene3d", "depth_scale=-1", "depth_scale=-1"),
        ("video", "dtype=float6", "did you mean 'float16'"),
    ],
)
def test_impossible_options(name: str, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        config.options(extraction.side_to_extract(name).options_type, [override])


def test_other_weights_are_refused() -> None:
    with pytest.raises(UserError, match="holds no LanguageBind video tower"):
        DENSE.build(BASE, dense.Options(tower="languagebind"), CPU)
    with pytest.raises(UserError, match="holds no SigLIP vision tower"):
        EXO.build(BASE.parent / "audio.safetensors", exo.Options(), CPU)


def test_cameras_of_a_plain_folder(tmp_path: Path) -> None:
    outside = ("b/cam2", "b/cam10", "a/gp01", "a/ariadne")
    for name in (*outside, "a/ego", "a/aria01_214-1", "stray"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.mp4").touch()
    items = EXO.find_items(tmp_path)
    assert [item.name for item in items] == ["a/ariadne", "a/gp01", "b/cam10", "b/cam2"]
    assert items[1].path == tmp_path / "a/gp01.mp4"
    for name in outside:
        (tmp_path / f"{name}.mp4").unlink()
    with pytest.raises(UserError, match=r"2 videos, none of an outside camera; expected <take>/<camera>\.mp4"):
        EXO.find_items(tmp_path)


@pytest.mark.parametrize("source", ["", "takes"])
def test_ego_exo4d_from_the_download_to_the_feature_files_of_training(source: str, tmp_path: Path) -> None:
    """Views interleaved, tokens as the base encodes its own key frames; the full-size videos are not taken."""
    root = tmp_path / "egoexo"
    for i, camera in enumerate(("cam02", "cam01", "aria01_214-1")):
        small = root / TAKE_VIDEO.format("u_bb_01", f"{camera}.mp4")
        small.parent.mkdir(parents=True, exist_ok=True)
        write_clip(small, 40 + 10 * i)
        (small.parents[2] / small.name).write_bytes(small.read_bytes())
    out = root / "features/exo"
    extraction.main("exo", root / source, out, str(BASE), ["frames=4"], extraction.Settings(workers=0, dtype="float32"))

    paths = {"ego": "takes/u_bb_01/frame_aligned_videos/aria01_214-1.mp4"}
    record = {"take_uid": "0", "scenario_name": "s", "proficiency_score": "Novice", "video_paths": paths}
    (root / "annotations").mkdir()
    (root / "annotations/proficiency_demonstrator_val.json").write_text(json.dumps({"annotations": [record]}))
    (question,) = get_task("egoexo").load("val", root)
    assert sorted(f.name for f in (out / question.features).iterdir()) == ["cam01.safetensors", "cam02.safetensors"]

    base = build.load_base(BaseConfig(path=str(BASE), dtype="float32"))
    tokens = get_side("exo").load(out / question.features)
    assert tokens.x.shape == (8, 4, 96)
    for view, camera in enumerate(("cam01", "cam02")):
        frames = every_frame(root / TAKE_VIDEO.format("u_bb_01", f"{camera}.mp4"))
        pixels = base.preprocess(np.stack([frames[i] for i in uniform(len(frames), 4)]))
        with torch.no_grad():
            assert torch.equal(tokens.x[view::2], base.encode(pixels[None]).query[0])
    assert_times(tokens._replace(seconds=None if tokens.seconds is None else tokens.seconds[::2]), uniform(50, 4) / 25)
