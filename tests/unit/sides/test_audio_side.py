"""The audio side encodes real, silent, short and missing sound."""

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
from pave.sides.audio import BATCH, Options, SideChannel, Sound
from pave.types import SideTokens, UserError

SIDE = SideChannel()
DEFAULT = Options()


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> imagebind_audio.Tower:
    """The golden tower of width 64, from a file."""
    path = tmp_path_factory.mktemp("tower") / "tower.safetensors"
    state = load_file(GOLDEN / "encoders/imagebind_audio/tower.safetensors")
    feature_files.write_safetensors(path, feature_files.TensorFile(state, {"heads": "4"}))
    return SIDE.build(path, Options(), torch.device("cpu"))


def read(path: Path, tower: imagebind_audio.Tower, options: Options = DEFAULT) -> Sound:
    """Read through pickle, as in a worker process."""
    return pickle.loads(pickle.dumps(SIDE.reader(tower, options)))(path)


def extract(path: Path, tower: imagebind_audio.Tower, options: Options = DEFAULT) -> SideTokens:
    return SIDE.encode(read(path, tower, options), tower, options)


def test_bunny(tower: imagebind_audio.Tower) -> None:
    """5.3 s of sound in 5.1 channels give four steps; the tower's rows have length 20."""
    tokens = extract(BUNNY, tower)
    assert tokens.x.shape == (4, 1, 64)
    assert_close(tokens.x.norm(dim=2), torch.full((4, 1), 20.0), atol=1e-4, rtol=0)
    assert tokens.seconds is not None
    assert tokens.seconds.tolist() == [1, 2, 3, 4]


def test_batches_make_no_difference(tower: imagebind_audio.Tower, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).standard_normal((1, 40 * 16_000)) * np.linspace(0.01, 0.2, 40 * 16_000)
    path = write_clip(tmp_path / "a.mp4", codec=None, sound=noise)
    waveform = read_waveform(path)
    for inplace_mean in (True, False):
        mel = mel_windows(resample(waveform.x, waveform.rate), inplace_mean)
        assert len(mel) > BATCH
        with torch.no_grad():
            single = torch.cat([tower(mel[i : i + 1]) for i in (0, 20, len(mel) - 1)])
        batched = extract(path, tower, Options(inplace_mean=inplace_mean)).x[[0, 20, -1], 0]
        assert_close(batched, single, atol=1e-4, rtol=0)


def test_silent_short_and_missing_sound(tower: imagebind_audio.Tower, tmp_path: Path) -> None:
    silent = read(write_clip(tmp_path / "a.mp4", 75, sound=np.zeros((1, 48_000))), tower)
    assert SIDE.note(silent) == "silent"
    tokens = SIDE.encode(silent, tower, Options())
    assert tokens.x.shape == (2, 1, 64)
    assert torch.isfinite(tokens.x).all()

    short = read(write_clip(tmp_path / "b.mp4", 10, sound=tone(0.4)), tower)
    assert SIDE.note(short).endswith("s, padded with silence to 2 s")
    tokens = SIDE.encode(short, tower, Options())
    assert tokens.x.shape == (1, 1, 64)
    assert tokens.seconds is not None
    assert tokens.seconds.tolist() == [1]

    assert SIDE.note(read(BUNNY, tower)) == ""
    with pytest.raises(UserError, match=r"c\.mp4: has no sound track"):
        read(write_clip(tmp_path / "c.mp4", 5), tower)


def test_mp3_compression_changes_little(tower: imagebind_audio.Tower) -> None:
    plain, lossy = read_waveform(BUNNY, mp3=False), read_waveform(BUNNY, mp3=True)
    assert (plain.x.shape[0], plain.rate) == (6, 48_000)
    assert (lossy.x.shape[0], lossy.rate) == (2, 44_100)
    seconds = plain.x.shape[1] / plain.rate
    assert seconds <= lossy.x.shape[1] / lossy.rate < seconds + 0.1, "mp3 has frames of 26 ms"
    plain_mel, lossy_mel = read(BUNNY, tower).mel, read(BUNNY, tower, Options(mp3=True)).mel
    assert plain_mel.shape == lossy_mel.shape
    assert not torch.equal(plain_mel, lossy_mel)


def test_rows_of_another_length_are_suspicious(tower: imagebind_audio.Tower) -> None:
    x = extract(BUNNY, tower).x
    assert SIDE.suspicion(x.bfloat16().float()) == ""
    assert "norm is 10.00 from 20" in SIDE.suspicion(x / 2)
