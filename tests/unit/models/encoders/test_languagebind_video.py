"""LanguageBind's video tower against the public class and transform (tests/golden/encoders/languagebind_video)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.paths import GOLDEN, read_json
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close

from pave.models import pooling
from pave.models.encoders import languagebind_video
from pave.models.encoders.languagebind_video import Tower, normalized_frame, prepare
from pave.sides.dense import choose_frames
from pave.types import UserError

FOLDER = GOLDEN / "encoders/languagebind_video"
CLIPS = np.load(FOLDER / "transform.npz")
CONFIG = {"vision_config": {"num_attention_heads": 4, "hidden_act": "gelu", "num_hidden_layers": 3}}


@pytest.fixture(scope="module")
def arrays() -> dict[str, Tensor]:
    """One chunk of frames and what the public class makes of it."""
    return {name: torch.from_numpy(x) for name, x in np.load(FOLDER / "tower.npz").items()}


def published(prefix: str = "vision_model.") -> dict[str, Tensor]:
    """All tensors of the public class; the last layer, which must not matter, holds NaN."""
    state = load_file(FOLDER / "tower.safetensors")
    last = {n.replace("layers.1.", "layers.2."): x * torch.nan for n, x in state.items() if "layers.1." in n}
    norm = {f"vision_model.post_layernorm.{n}": torch.full((64,), torch.nan) for n in ("weight", "bias")}
    return {n.replace("vision_model.", prefix): x for n, x in {**state, **last, **norm}.items()}


def write(folder: Path, state: dict[str, Tensor], config: dict[str, Any] = CONFIG) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def run(tower: Tower, frames: Tensor) -> Tensor:
    """The public class takes (N,3,8,S,S)."""
    with torch.no_grad():
        return tower(frames.transpose(1, 2))


def test_tower(arrays: dict[str, Tensor], tmp_path: Path) -> None:
    tower = languagebind_video.load(write(tmp_path / "a", published()))
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
    hidden = run(languagebind_video.load(write(tmp_path / "a", published(), quick)), arrays["input"])
    assert_close(hidden, arrays["hidden_minus2_quick_gelu"], atol=5e-5, rtol=0)
    assert (hidden - arrays["hidden_minus2"]).abs().max() > 0.1
    del quick["vision_config"]["hidden_act"]
    hidden = run(languagebind_video.load(write(tmp_path / "b", published(), quick)), arrays["input"])
    assert_close(hidden, arrays["hidden_minus2"], atol=5e-5, rtol=0)


def test_chunks_do_not_see_one_another_and_frames_do(arrays: dict[str, Tensor], tmp_path: Path) -> None:
    tower = languagebind_video.load(write(tmp_path / "a", published()))
    one, other = arrays["input"], arrays["input"].flip(2)
    both = run(tower, torch.cat([one, other]))
    assert_close(both[:1], run(tower, one), atol=1e-4, rtol=0)
    assert_close(both[1:], run(tower, other), atol=1e-4, rtol=0)
    last = one.clone()
    last[:, :, 7] = 0
    assert (run(tower, last)[:, 0] - both[:1, 0]).abs().max() > 1e-2


def test_every_layout_gives_the_same_tower(arrays: dict[str, Tensor], tmp_path: Path) -> None:
    wanted = run(languagebind_video.load(write(tmp_path / "a", published())), arrays["input"])
    position_ids = {"vision_model.embeddings.position_ids": torch.arange(17)}
    others = {"text_model.embeddings.weight": torch.zeros(3), "logit_scale": torch.zeros(())}
    merged = tmp_path / "merged"
    write(merged, {})
    (merged / "model.safetensors").unlink()
    torch.save({**published(), **position_ids, **others}, merged / "pytorch_model.bin")
    # In parts, of which the language model's need not even be there, with no vision_config.
    llava, places = tmp_path / "llava", {"model.layers.0.weight": "pytorch_model-00003-of-00003.bin"}
    write(llava, {}, {"num_attention_heads": 32})
    (llava / "model.safetensors").unlink()
    state = published("model.video_tower.video_tower.")
    for i, part in enumerate((sorted(state)[::2], sorted(state)[1::2]), start=1):
        file = f"pytorch_model-0000{i}-of-00003.bin"
        torch.save({name: state[name].double() for name in part}, llava / file)
        places |= dict.fromkeys(part, file)
    (llava / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(UserError, match="width 64, 0 heads, activation 'gelu'; state num_attention_heads"):
        languagebind_video.load(llava)
    (llava / "config.json").write_text(json.dumps(CONFIG))
    for path in (merged, merged / "pytorch_model.bin", llava, tmp_path / "a/model.safetensors"):
        tower = languagebind_video.load(path)
        assert {x.dtype for x in tower.state_dict().values()} == {torch.float32}
        assert torch.equal(run(tower, arrays["input"]), wanted), path
    (llava / "pytorch_model-00002-of-00003.bin").unlink()
    with pytest.raises(UserError, match=r"pytorch_model-00002-of-00003\.bin: no such file"):
        languagebind_video.load(llava)


def test_wrong_tensors_are_named(tmp_path: Path) -> None:
    state, layer = published(), "vision_model.encoder.layers.1"
    del state[f"{layer}.temporal_attn.q_proj.weight"]
    state |= {f"{layer}.gain": torch.zeros(1), "vision_model.pre_layrnorm.bias": torch.zeros(3)}
    with pytest.raises(UserError) as caught:
        languagebind_video.load(write(tmp_path / "a", state))
    message = str(caught.value)
    assert "1 missing, such as encoder.layers.1.temporal_attn.q_proj.weight; " in message
    assert "1 unexpected, such as encoder.layers.1.gain; " in message
    assert "1 misshapen, such as pre_layrnorm.bias; " in message
    deeper = {"vision_config": {**CONFIG["vision_config"], "num_hidden_layers": 4}}
    with pytest.raises(UserError, match=r"missing, such as encoder\.layers\.2\.layer_norm1\.bias"):
        languagebind_video.load(write(tmp_path / "b", {n: x for n, x in published().items() if ".2." not in n}, deeper))


@pytest.mark.parametrize("lost", ["temporal_embedding", "position_embedding", "fc1", "everything"])
def test_other_towers_are_refused(lost: str, tmp_path: Path) -> None:
    """Such as the transformers copy of Video-LLaVA, which has other names and lost the attention over time."""
    prefix = "video_tower.vision_model." if lost == "everything" else "vision_model."
    state = {n: x for n, x in published(prefix).items() if lost not in n}
    with pytest.raises(UserError, match=f"holds no LanguageBind video tower: .*{'' if lost == 'everything' else lost}"):
        languagebind_video.load(write(tmp_path / "a", state))


def test_broken_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a: no such file"):
        languagebind_video.load(tmp_path / "a")
    folder = write(tmp_path / "a", published())
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"model\.safetensors: not a whole safetensors file"):
        languagebind_video.load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no weights in it; expected model\.safetensors or pytorch_model\.bin"):
        languagebind_video.load(folder)
    torch.save([1, 2], folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin: holds a list, expected named tensors"):
        languagebind_video.load(folder)
    (folder / "config.json").write_text("{")
    torch.save(published(), folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"config\.json: not valid JSON"):
        languagebind_video.load(folder)


@pytest.mark.parametrize("case", sorted({name.split("/")[0] for name in CLIPS}))
def test_transform(case: str) -> None:
    picture = CLIPS[f"{case}/clip_uint8"][0]
    got = normalized_frame(picture, 224)
    assert got.shape == (3, 224, 224)
    assert_close(got[:, ::9, ::9], torch.from_numpy(CLIPS[f"{case}/out_sampled"][:, 0]), atol=1e-5, rtol=0)
    half = prepare(picture, 224)
    assert half.dtype == np.float16
    assert np.array_equal(half, got.half().numpy())


@pytest.mark.parametrize("row", read_json(FOLDER / "frame_indices.json"), ids=lambda r: f"{r['frames']}-{r['fps']}")
def test_frames(row: dict[str, Any]) -> None:
    seconds = np.arange(row["frames"]) / row["fps"]
    index = choose_frames(seconds, row["fps"], 2.0, row["min_frame_num"] or 0, multiple=8)
    assert len(index) == row["total"]
    assert index[:40].tolist() == row["indices"]
    assert index[-1] == row["frames"] - 1
