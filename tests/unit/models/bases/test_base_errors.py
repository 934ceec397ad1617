"""Video-LLaVA and Qwen2.5-VL: shapes without weights, settings and folders that do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny_bases import make_original, make_port, make_qwen
from safetensors.torch import load_file, save_file
from torch import Tensor

from pave import config as configs
from pave.checkpoints import build
from pave.cli.main import main
from pave.models.bases import qwen2_5_vl, video_llava
from pave.models.bases._loading import Settings
from pave.types import UserError
from pave.utils import registry


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_port(tmp_path_factory.mktemp("port"))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_original(tmp_path_factory.mktemp("original"))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_qwen(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(params=["port", "original"])
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def test_wrong_settings_and_folders_are_answered(port: Path, original: Path, tmp_path: Path) -> None:
    for settings, message in (
        ({"newline": "grid"}, "set base.newline=no_token"),
        ({"pool": "max"}, "base.pool=max"),
        ({"vision_heads": 4}, "base.vision_heads=4"),
    ):
        with pytest.raises(UserError, match=message):
            video_llava.load(str(port), Settings(**settings))
    with pytest.raises(UserError, match="this tower sees 8 frames at once"):
        video_llava.load(str(original)).visual_tokens(12)
    with pytest.raises(UserError, match="320 visual tokens, the LLM has 256 places"):
        video_llava.load(str(port)).visual_tokens(64)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"}))
    with pytest.raises(UserError, match="has no mm_video_tower"):
        video_llava.load(str(tmp_path))


@pytest.mark.parametrize(
    ("kind", "gone", "added", "message"),
    [
        ("port", "multi_modal_projector.linear_1.bias", {}, "linear_1.bias"),
        ("port", "", {"video_tower.temporal": torch.zeros(1)}, "temporal"),
        ("original", "model.mm_projector.0.bias", {}, "missing, such as 0.bias"),
        ("original", "model.layers.0.mlp.up_proj.weight", {}, "up_proj"),
        ("original", "", {"model.extra": torch.zeros(1)}, "model.extra"),
        ("original", "model.video_tower.video_tower.encoder.layers.0.temporal_embedding", {}, "no LanguageBind video"),
    ],
)
def test_wrong_tensors_are_named(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, gone: str, added: dict[str, Tensor], message: str
) -> None:
    for file in request.getfixturevalue(kind).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = load_file(tmp_path / "model.safetensors")
    left = {name: x for name, x in state.items() if not gone or not name.endswith(gone)}
    assert len(left) == len(state) - bool(gone)
    save_file({**left, **added}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=message) as caught:
        video_llava.load(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "tower", "vocabulary"),
    [(video_llava.PORT, 303_179_776, 32064), (video_llava.ORIGINAL, 404_187_136 - 16_806_912, 32000)],
)
def test_show_needs_no_weights(
    path: str, tower: int, vocabulary: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        f"base: {{name: video_llava, path: {path}, frames: 8, newline: no_token}}\nsides: {{audio: {{}}}}\n"
    )
    main(["show", str(file)])
    rows = {line.split("  ")[0]: line.split()[-1] for line in capsys.readouterr().out.splitlines() if line}
    # Of the published tower's 404.2 M the last layer and the norm after it are never needed.
    assert rows["vision tower"] == f"{tower:,}"
    assert rows["projector"] == f"{1024 * 4096 + 4096 * 4096 + 2 * 4096:,}"
    assert rows["LLM"] == f"{6_738_415_616 + 2 * 4096 * (vocabulary - 32000):,}"
    model = build.create(configs.load(file), weights=False)
    assert model.base.visual_tokens(8) == 2056
    assert model.base.query_dim == 1024
    assert "video_llava" in registry.names("bases")


def test_folders_without_weights_have_the_same_shapes(folder: Path) -> None:
    there, skeleton = video_llava.load(str(folder)), video_llava.load(str(folder), weights=False)
    assert {n: x.shape for n, x in there.state_dict().items()} == {n: x.shape for n, x in skeleton.state_dict().items()}
    assert all(x.is_meta for x in skeleton.parameters())


def test_wrong_settings_and_folders_are_answered_qwen(qwen: Path, tmp_path: Path) -> None:
    for settings, message in (
        ({"newline": "grid"}, "set base.newline=no_token"),
        ({"pool": "max"}, "base.pool=max"),
        ({"vision_heads": 4}, "base.vision_heads=4"),
    ):
        with pytest.raises(UserError, match=message):
            qwen2_5_vl.load(str(qwen), Settings(**settings))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3_vl"}))
    with pytest.raises(UserError, match="model_type is qwen3_vl, expected qwen2_5_vl"):
        qwen2_5_vl.load(str(tmp_path))
    base = qwen2_5_vl.load(str(qwen))
    with pytest.raises(UserError, match="600 x 2 pixels"):
        base.preprocess(np.zeros((2, 2, 600, 3), np.uint8))


@pytest.mark.parametrize(("path", "parameters"), [("3B", 3_754_622_976), ("7B", 8_292_166_656)])
def test_show_needs_no_weights_qwen(
    path: str, parameters: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    name = f"Qwen/Qwen2.5-VL-{path}-Instruct"
    file.write_text(f"base: {{name: qwen2_5_vl, path: {name}, newline: no_token}}\nsides: {{audio: {{}}}}\n")
    main(["show", str(file)])
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("vision tower", "LLM"))]
    assert sum(int(line.split()[-1].replace(",", "")) for line in shown) == parameters
    model = build.create(configs.load(file), weights=False)
    assert all(x.is_meta for x in model.base.parameters())
    assert "qwen2_5_vl" in registry.names("bases")


def test_folders_without_weights_have_the_same_shapes_qwen(qwen: Path) -> None:
    there, skeleton = qwen2_5_vl.load(str(qwen)), qwen2_5_vl.load(str(qwen), weights=False)
    assert {n: x.shape for n, x in there.state_dict().items()} == {n: x.shape for n, x in skeleton.state_dict().items()}
    assert there.pixels == skeleton.pixels
