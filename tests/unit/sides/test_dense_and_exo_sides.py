"""From videos to dense and exo tokens: which frames, their times, what the towers make of them, names, faults."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.media_files import BUNNY, cut, every_frame, tone, write_clip
from torch.nn import functional as F

from pave import config
from pave.data import extraction
from pave.media.frame_sampling import uniform
from pave.models.bases import llava_onevision
from pave.models.encoders import languagebind_video
from pave.sides import dense, exo
from pave.tasks import egoexo
from pave.types import Clip, SideTokens, UserError

BASE = Path(config.resolve("asset:sideworld/base"))
LAID = "takes/{}/frame_aligned_videos/downscaled/448/{}"


@pytest.fixture(scope="module")
def base() -> llava_onevision.LlavaOnevision:
    return llava_onevision.load(str(BASE))


@pytest.fixture(scope="module")
def bind() -> languagebind_video.Tower:
    torch.manual_seed(0)
    return languagebind_video.Tower(width=32, inner=48, depth=3, heads=2, patch=14, edge=4).eval()


def of_dense(path: Path, **options: object) -> SideTokens:
    chosen = dense.Options(**options)  # type: ignore[arg-type]
    encoder = dense.build(BASE, chosen, torch.device("cpu"))
    return dense.encode(dense.reader(encoder, chosen)(path), encoder, chosen)


def test_siglip_on_a_real_clip(base: llava_onevision.LlavaOnevision) -> None:
    """5.28 s give ten frames; each token is the mean of a quarter of the base's own grid."""
    tokens, index, whole = of_dense(BUNNY), uniform(132, 10), every_frame(BUNNY)
    pixels = base.preprocess(np.stack([whole[i] for i in index]))
    with torch.no_grad():
        seen = base.hf.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1]
    quarters = seen.view(10, 2, 2, 2, 2, 96).mean((2, 4)).view(10, 4, 96)
    torch.testing.assert_close(tokens.x, quarters, atol=1e-5, rtol=0)
    assert tokens.seconds is not None
    np.testing.assert_allclose(tokens.seconds, index / 25, atol=1e-6)
    assert dense.extractor(dense.Options()) == "siglip_frames"


def test_languagebind_on_a_real_clip(bind: languagebind_video.Tower) -> None:
    """21 frames are asked, two chunks of eight are whole; what a worker sends is half precision."""
    options = dense.Options(tower="languagebind", fps=4.0)
    clip = dense.reader(bind, options)(BUNNY)
    assert (clip.frames.dtype, clip.frames.shape) == (np.float16, (16, 3, 56, 56))
    tokens, index = dense.encode(clip, bind, options), uniform(132, 16)
    assert tokens.x.shape == (16, 4, 32)
    assert tokens.x.dtype == torch.float32
    assert not tokens.x.requires_grad
    assert tokens.seconds is not None
    np.testing.assert_allclose(tokens.seconds, index / 25, atol=1e-6)
    whole = every_frame(BUNNY)
    frames = torch.stack([languagebind_video.pixels(whole[i], 56) for i in index[8:]])
    with torch.no_grad():
        grids = bind(frames.half().float()[None])[0, :, 1:].transpose(1, 2).unflatten(2, (4, 4))
    torch.testing.assert_close(tokens.x[8:], F.avg_pool2d(grids, 2).flatten(2).transpose(1, 2), atol=1e-5, rtol=0)
    assert dense.extractor(options) == "languagebind_video"


def test_batches_make_no_difference(bind: languagebind_video.Tower, monkeypatch: pytest.MonkeyPatch) -> None:
    options = dense.Options(tower="languagebind", fps=8.0)
    clip = dense.reader(bind, options)(BUNNY)
    whole = dense.encode(clip, bind, options).x
    assert len(whole) == 40
    for batch in (1, 8, 24):
        monkeypatch.setattr("pave.sides._frame_features.BATCH", batch)
        torch.testing.assert_close(dense.encode(clip, bind, options).x, whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize("plugin", [dense, exo])
def test_readers_travel_to_other_processes(plugin: object) -> None:
    options = plugin.Options()  # type: ignore[attr-defined]
    encoder = plugin.build(BASE, options, torch.device("cpu"))  # type: ignore[attr-defined]
    stored = pickle.dumps(plugin.reader(encoder, options))  # type: ignore[attr-defined]
    assert len(stored) < 2000
    clip: Clip = pickle.loads(stored)(BUNNY)
    assert (clip.frames.dtype, clip.frames.shape[1:]) == (np.uint8, (64, 64, 3))


def test_short_videos(tmp_path: Path, bind: languagebind_video.Tower) -> None:
    """One frame at least, or a chunk; more only where asked, then some come twice."""
    one = write_clip(tmp_path / "one.mp4", 1)
    assert of_dense(one).x.shape == (1, 4, 96)
    tokens = of_dense(one, least=3)
    assert tokens.x.shape == (3, 4, 96)
    assert torch.equal(tokens.x[0], tokens.x[2])
    options = dense.Options(tower="languagebind")
    tokens = dense.encode(dense.reader(bind, options)(one), bind, options)
    assert tokens.x.shape == (8, 4, 32)
    assert tokens.seconds is not None
    assert tokens.seconds.tolist() == [0] * 8
    second = write_clip(tmp_path / "b.mp4", 25)
    assert len(of_dense(second).x) == 2
    assert len(of_dense(second, least=7, pool=1).x) == 7
    assert of_dense(second, pool=3).x.shape == (2, 9, 96)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_uneven_frames_keep_their_times(suffix: str, tmp_path: Path) -> None:
    """40 frames over a minute, though the Matroska file states 25 a second."""
    times = np.arange(40) * 1500
    tokens = of_dense(write_clip(tmp_path / f"a.{suffix}", 40, times=times.tolist()), fps=0.5)
    assert tokens.seconds is not None
    np.testing.assert_allclose(tokens.seconds, times[uniform(40, 29)] / 1000, atol=1e-3)


def test_options_that_cannot_be() -> None:
    with pytest.raises(UserError, match="fps=0 pool=2: both must be above 0"):
        config.options(dense.Options, ["fps=0"])
    with pytest.raises(UserError, match="did you mean 'siglip'"):
        config.options(dense.Options, ["tower=siglup"])
    with pytest.raises(UserError, match="frames=0: must be above 0"):
        config.options(exo.Options, ["frames=0"])


def test_bad_videos_and_weights(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    sound = write_clip(tmp_path / "sound.mp4", codec=None, sound=tone(1))
    damaged = cut(write_clip(tmp_path / "a.mp4", container={"movflags": "faststart"}))
    for path in (tmp_path, tmp_path / "none.mp4", tmp_path / "text.mp4", sound, damaged):
        for plugin in (dense, exo):
            options = plugin.Options()
            encoder = plugin.build(BASE, options, torch.device("cpu"))
            with pytest.raises(UserError, match=path.name):
                plugin.reader(encoder, options)(path)
    with pytest.raises(UserError, match="holds no LanguageBind video tower"):
        dense.build(BASE, dense.Options(tower="languagebind"), torch.device("cpu"))
    with pytest.raises(UserError, match="holds no SigLIP vision tower"):
        exo.build(BASE.parent / "audio.safetensors", exo.Options(), torch.device("cpu"))


def test_cameras_of_a_plain_folder(tmp_path: Path) -> None:
    for name in ("b/cam2", "b/cam10", "a/gp01", "a/ego", "a/aria01_214-1", "a/ariadne"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.mp4").touch()
    (tmp_path / "stray.mp4").touch()
    assert [item.name for item in exo.find(tmp_path)] == ["a/ariadne", "a/gp01", "b/cam10", "b/cam2"]
    assert exo.find(tmp_path)[1].path == tmp_path / "a/gp01.mp4"
    for name in ("b/cam2", "b/cam10", "a/gp01", "a/ariadne"):
        (tmp_path / f"{name}.mp4").unlink()
    with pytest.raises(UserError, match=r"2 videos, none of an outside camera; expected <take>/<camera>\.mp4"):
        exo.find(tmp_path)


@pytest.mark.parametrize("source", ["", "takes"])
def test_ego_exo4d_from_the_download_to_what_training_reads(
    source: str, base: llava_onevision.LlavaOnevision, tmp_path: Path
) -> None:
    """Views interleaved, tokens those that the base makes of its own key frames; the full-size videos are not taken."""
    root = tmp_path / "egoexo"
    for i, camera in enumerate(("cam02", "cam01", "aria01_214-1")):
        small = root / LAID.format("u_bb_01", f"{camera}.mp4")
        small.parent.mkdir(parents=True, exist_ok=True)
        write_clip(small, 40 + 10 * i)
        (small.parents[2] / small.name).write_bytes(small.read_bytes())
    out = root / "features/exo"
    extraction.main("exo", root / source, out, str(BASE), ["frames=4"], extraction.Settings(workers=0, dtype="float32"))
    raw = {"take_uid": "0", "scenario_name": "s", "proficiency_score": "Novice"}
    (question,) = egoexo._question(
        "", {**raw, "video_paths": {"ego": "takes/u_bb_01/frame_aligned_videos/aria01_214-1.mp4"}}
    )
    assert sorted(f.name for f in (out / question.features).iterdir()) == ["cam01.safetensors", "cam02.safetensors"]
    tokens = exo.load(out / question.features)
    assert tokens.x.shape == (8, 4, 96)
    for view, camera in enumerate(("cam01", "cam02")):
        frames = every_frame(root / LAID.format("u_bb_01", f"{camera}.mp4"))
        pixels = base.preprocess(np.stack([frames[i] for i in uniform(len(frames), 4)]))
        with torch.no_grad():
            assert torch.equal(tokens.x[view::2], base.encode(pixels[None]).query[0])
    assert tokens.seconds is not None
    np.testing.assert_allclose(tokens.seconds[::2], uniform(50, 4) / 25, atol=1e-6)
