"""The audio side: published and own feature files, and encoding of real, silent, short and missing sound."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.media_files import BUNNY, tone, write_clip
from helpers.paths import GOLDEN
from safetensors.torch import load_file
from torch.testing import assert_close

from pave.media import feature_files
from pave.media.audio import mel_windows, read_waveform, resample
from pave.models.encoders import imagebind_audio
from pave.sides import audio
from pave.types import SideTokens, UserError
from pave.utils import registry

FEATURES = GOLDEN / "module/features/audio.safetensors"


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> imagebind_audio.Tower:
    """The golden tower of width 64, from a file."""
    path = tmp_path_factory.mktemp("tower") / "tower.safetensors"
    state = load_file(GOLDEN / "encoders/imagebind_audio/tower.safetensors")
    feature_files.write_safetensors(path, feature_files.Tensors(state, {"heads": "4"}))
    return audio.build(path, audio.Options())


def extract(path: Path, tower: imagebind_audio.Tower, **switches: bool) -> SideTokens:
    """Through pickle, as from a worker process."""
    options = audio.Options(**switches)
    read = pickle.loads(pickle.dumps(audio.reader(tower, options)))
    return audio.encode(read(path), tower, options)


def test_it_is_a_plugin() -> None:
    assert registry.load("sides", "audio") is audio
    assert audio.DIM == 1024


@pytest.mark.parametrize("case", ["audio_2d", "audio_3d", "audio_requires_grad", "audio_half"])
def test_official_files(case: str, tmp_path: Path) -> None:
    """The release makes (C, K, 1, 1) of them; ours are steps first and always float32."""
    arrays = load_file(FEATURES)
    x = arrays[f"{case}/in"].requires_grad_(case == "audio_requires_grad")
    torch.save(x, tmp_path / "a.pt")
    tokens = audio.load(tmp_path / "a.pt")
    assert tokens.x.dtype == torch.float32
    assert not tokens.x.requires_grad
    assert torch.equal(tokens.x, arrays[f"{case}/out"].float().permute(1, 2, 3, 0).flatten(1, 2))
    assert tokens.seconds is None


def test_official_bfloat16_keeps_its_values(tmp_path: Path) -> None:
    x = torch.randn(5, 8).bfloat16()
    torch.save(x, tmp_path / "a.pt")
    assert torch.equal(audio.load(tmp_path / "a.pt").x, x.float()[:, None])


@pytest.mark.parametrize("wrong", [torch.zeros(3), torch.zeros(1, 2, 3, 4), {"x": torch.zeros(2, 3)}])
def test_other_official_files_are_refused(wrong: object, tmp_path: Path) -> None:
    torch.save(wrong, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"a\.pt: holds .*, expected a tensor \(steps, width\)"):
        audio.load(tmp_path / "a.pt")


def test_bunny_to_file_and_back(tower: imagebind_audio.Tower, tmp_path: Path) -> None:
    """5.3 s of sound in 5.1 channels give four steps; the tower's rows have length 20."""
    tokens = extract(BUNNY, tower)
    assert tokens.x.shape == (4, 1, 64)
    assert_close(tokens.x.norm(dim=2), torch.full((4, 1), 20.0), atol=1e-4, rtol=0)
    assert tokens.seconds is not None
    assert tokens.seconds.tolist() == [1, 2, 3, 4]
    path = tmp_path / "bunny.safetensors"
    feature_files.write(path, tokens, feature_files.Meta("audio", audio.EXTRACTORS[0], BUNNY.name))
    got = audio.load(path)
    assert torch.equal(got.x, tokens.x)
    feature_files.check(got, path, 64)
    with pytest.raises(UserError, match=f"width 64, this patch needs {audio.DIM}"):
        feature_files.check(got, path, audio.DIM)


def test_files_of_another_extractor_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    feature_files.write(path, SideTokens(torch.zeros(1, 1, 4)), feature_files.Meta("dense", "languagebind", "a.mp4"))
    with pytest.raises(UserError, match="made by extractor 'languagebind', expected 'imagebind_audio'"):
        audio.load(path)


def test_batches_make_no_difference(tower: imagebind_audio.Tower, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).standard_normal((1, 40 * 16_000)) * np.linspace(0.01, 0.2, 40 * 16_000)
    path = write_clip(tmp_path / "a.mp4", codec=None, sound=noise)
    sound = read_waveform(path)
    for inplace in (True, False):
        mel = mel_windows(resample(sound.x, sound.rate), inplace)
        assert len(mel) > audio.BATCH
        with torch.no_grad():
            alone = torch.cat([tower(mel[i : i + 1]) for i in (0, 20, len(mel) - 1)])
        got = extract(path, tower, inplace_mean=inplace).x[[0, 20, -1], 0]
        assert_close(got, alone, atol=1e-4, rtol=0)


def test_silence_is_finite_and_short_sound_is_one_step(tower: imagebind_audio.Tower, tmp_path: Path) -> None:
    silent = extract(write_clip(tmp_path / "a.mp4", 75, sound=np.zeros((1, 48_000))), tower)
    assert silent.x.shape == (2, 1, 64)
    assert torch.isfinite(silent.x).all()
    short = extract(write_clip(tmp_path / "b.mp4", 10, sound=tone(0.4)), tower)
    assert short.x.shape == (1, 1, 64)
    assert short.seconds is not None
    assert short.seconds.tolist() == [1]


def test_no_sound_track_is_an_error(tower: imagebind_audio.Tower, tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", 5)
    with pytest.raises(UserError, match=r"a\.mp4: has no sound track"):
        extract(path, tower)


def test_what_is_noted(tower: imagebind_audio.Tower, tmp_path: Path) -> None:
    read = audio.reader(tower, audio.Options())
    assert audio.note(read(write_clip(tmp_path / "a.mp4", codec=None, sound=np.zeros((1, 48_000))))) == "silent"
    short = audio.note(read(write_clip(tmp_path / "b.mp4", codec=None, sound=tone(0.4))))
    assert short.endswith("s, padded with silence to 2 s")
    assert audio.note(read(BUNNY)) == ""


def test_an_mp3_on_the_way_changes_little(tower: imagebind_audio.Tower) -> None:
    plain, lossy = (read_waveform(BUNNY, mp3) for mp3 in (False, True))
    assert (plain.x.shape[0], plain.rate) == (6, 48_000)
    assert (lossy.x.shape[0], lossy.rate) == (2, 44_100)
    seconds = plain.x.shape[1] / plain.rate
    assert seconds <= lossy.x.shape[1] / lossy.rate < seconds + 0.1, "mp3 has frames of 26 ms"
    options = audio.Options(mp3=True)
    mel, other = (audio.reader(tower, chosen)(BUNNY).mel for chosen in (audio.Options(), options))
    assert mel.shape == other.shape
    assert not torch.equal(mel, other)


def test_rows_of_another_length_are_suspicious(tower: imagebind_audio.Tower) -> None:
    x = extract(BUNNY, tower).x
    assert audio.suspicious(x.bfloat16().float()) == ""
    assert "norm is 10.00 from 20" in audio.suspicious(x / 2)
