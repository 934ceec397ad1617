"""LanguageBind's video tower against the public class and transform (tests/golden/encoders/languagebind_video)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.encoder_weights import LANGUAGEBIND_CONFIG as CONFIG
from helpers.encoder_weights import languagebind, load_arrays, write_checkpoint
from helpers.paths import GOLDEN, read_json
from torch import Tensor
from torch.testing import assert_close

from pave.models import pooling
from pave.models.encoders import languagebind_video
from pave.models.encoders.languagebind_video import Tower, normalized_frame, prepare
from pave.sides.dense import choose_frames
from pave.types import UserError

FOLDER = GOLDEN / "encoders/languagebind_video"
CLIPS = np.load(FOLDER / "transform.npz")


@pytest.fixture(scope="module")
def arrays() -> dict[str, Tensor]:
    """One chunk of frames and the hidden states of the public class."""
    return load_arrays("languagebind_video/tower.npz")


def run(tower: Tower, frames: Tensor) -> Tensor:
    """The public class takes (N,3,8,S,S)."""
    with torch.no_grad():
        return tower(frames.transpose(1, 2))


def test_tower(arrays: dict[str, Tensor], tmp_path: Path) -> None:
    tower = languagebind_video.load(write_checkpoint(tmp_path / "a", languagebind(), CONFIG))
    assert (tower.image_size, tower.frames, len(tower.encoder.layers), tower.training) == (56, 8, 2, False)
    with torch.no_grad():
        first = tower.pre_layrnorm(tower.embeddings(arrays["input"].transpose(1, 2)[0]))[None]
        assert_close(first, arrays["hidden_0"], atol=1e-5, rtol=0)
        assert_close(tower.encoder.layers[0](first), arrays["hidden_1"], atol=2e-5, rtol=0)
    hidden = run(tower, arrays["input"])
    assert_close(hidden, arrays["hidden_minus2"], atol=5e-5, rtol=0)
    patches = tower.patches(arrays["input"].transpose(1, 2)[0])
    assert torch.equal(patches, hidden[0, :, 1:])
    pooled = torch.cat([hidden[0, :, :1], pooling.average(patches, 2)], 1)
    assert_close(pooled, arrays["pooled"], atol=5e-5, rtol=0)


def test_the_activation_is_that_of_the_config(arrays: dict[str, Tensor], tmp_path: Path) -> None:
    quick = {"vision_config": {**CONFIG["vision_config"], "hidden_act": "quick_gelu"}}
    hidden = run(languagebind_video.load(write_checkpoint(tmp_path / "a", languagebind(), quick)), arrays["input"])
    assert_close(hidden, arrays["hidden_minus2_quick_gelu"], atol=5e-5, rtol=0)
    assert (hidden - arrays["hidden_minus2"]).abs().max() > 0.1
    del quick["vision_config"]["hidden_act"]
    hidden = run(languagebind_video.load(write_checkpoint(tmp_path / "b", languagebind(), quick)), arrays["input"])
    assert_close(hidden, arrays["hidden_minus2"], atol=5e-5, rtol=0)


def test_chunks_do_not_see_one_another_and_frames_do(arrays: dict[str, Tensor], tmp_path: Path) -> None:
    tower = languagebind_video.load(write_checkpoint(tmp_path / "a", languagebind(), CONFIG))
    first, second = arrays["input"], arrays["input"].flip(2)
    both = run(tower, torch.cat([first, second]))
    assert_close(both[:1], run(tower, first), atol=1e-4, rtol=0)
    assert_close(both[1:], run(tower, second), atol=1e-4, rtol=0)
    changed = first.clone()
    changed[:, :, 7] = 0
    assert (run(tower, changed)[:, 0] - both[:1, 0]).abs().max() > 1e-2


def test_names_of_video_llava_give_the_same_tower(arrays: dict[str, Tensor], tmp_path: Path) -> None:
    expected = run(languagebind_video.load(write_checkpoint(tmp_path / "a", languagebind(), CONFIG)), arrays["input"])
    position_ids = {"model.video_tower.video_tower.embeddings.position_ids": torch.arange(17)}
    state = {**languagebind("model.video_tower.video_tower."), **position_ids}
    folder = write_checkpoint(tmp_path / "llava", state, {"num_attention_heads": 32})
    with pytest.raises(UserError, match="width 64, 0 heads, activation 'gelu'; state num_attention_heads"):
        languagebind_video.load(folder)
    write_checkpoint(folder, state, CONFIG)
    assert torch.equal(run(languagebind_video.load(folder), arrays["input"]), expected)


def test_the_depth_is_that_of_the_config(tmp_path: Path) -> None:
    state = {name: x for name, x in languagebind().items() if ".2." not in name}
    config = {"vision_config": {**CONFIG["vision_config"], "num_hidden_layers": 4}}
    with pytest.raises(UserError, match=r"missing, such as encoder\.layers\.2\.layer_norm1\.bias"):
        languagebind_video.load(write_checkpoint(tmp_path / "a", state, config))


@pytest.mark.parametrize("part", ["temporal_embedding", "position_embedding", "fc1"])
def test_towers_without_these_are_refused(part: str, tmp_path: Path) -> None:
    """Such as the transformers copy of Video-LLaVA, which has other names and lost the attention over time."""
    state = {name: x for name, x in languagebind().items() if part not in name}
    with pytest.raises(UserError, match=f"holds no LanguageBind video tower: .*{part}"):
        languagebind_video.load(write_checkpoint(tmp_path / "a", state, CONFIG))


@pytest.mark.parametrize("case", sorted({name.split("/")[0] for name in CLIPS}))
def test_transform(case: str) -> None:
    image = CLIPS[f"{case}/clip_uint8"][0]
    x = normalized_frame(image, 224)
    assert x.shape == (3, 224, 224)
    assert_close(x[:, ::9, ::9], torch.from_numpy(CLIPS[f"{case}/out_sampled"][:, 0]), atol=1e-5, rtol=0)
    half = prepare(image, 224)
    assert half.dtype == np.float16
    assert np.array_equal(half, x.half().numpy())


@pytest.mark.parametrize("row", read_json(FOLDER / "frame_indices.json"), ids=lambda r: f"{r['frames']}-{r['fps']}")
def test_frames(row: dict[str, Any]) -> None:
    seconds = np.arange(row["frames"]) / row["fps"]
    index = choose_frames(seconds, row["fps"], 2.0, row["min_frame_num"] or 0, multiple=8)
    assert len(index) == row["total"]
    assert index[:40].tolist() == row["indices"]
    assert index[-1] == row["frames"] - 1
