"""A teacher for Video-Panda's tower: which tokens are compared, what learns, its three stages one after the other."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from helpers.panda_folder import make_panda
from helpers.tiny_model import TinySetup, make_config
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from pave.checkpoints import build
from pave.config import BaseConfig, Config, LoraConfig
from pave.models import distillation_head, trainable
from pave.models.encoders.languagebind_video import Tower
from pave.training import distillation, train
from pave.types import UserError

WIDTH = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_panda(tmp_path_factory.mktemp("panda"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LanguageBind tower of random weights, as wide as Video-Panda's."""
    out = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(0)
    state = Tower(WIDTH, 96, 3, 4, 14, 4).state_dict()
    last = {n.replace("layers.1.", "layers.2."): x for n, x in state.items() if "layers.1." in n}
    save_file({f"vision_model.{n}": x.clone() for n, x in {**state, **last}.items()}, out / "model.safetensors")
    (out / "config.json").write_text(json.dumps({"vision_config": {"num_attention_heads": 4}}))
    return out


def stage(tiny_setup: TinySetup, folder: Path, learn: list[str], init: str = "", teacher: str = "") -> Config:
    config = make_config(*tiny_setup, max_steps=2, learning_rate=1e-3)
    base = BaseConfig(
        "video_panda", str(folder), 4, newline="no_token", dtype="float32", trainable=learn, init_from=init
    )
    return dataclasses.replace(config, base=base, sides={}, lora=LoraConfig(r=0), distill_from=teacher)


def trained_parts(state: dict[str, torch.Tensor]) -> set[str]:
    return {trainable.setting_of(name) or trainable.part_of(name) for name in state}


@torch.no_grad()
def test_cells_are_compared_and_class_and_split_tokens_are_not() -> None:
    torch.manual_seed(0)
    head = distillation_head.DistillationHead(4, 8, 6)
    assert head.layer_indices == [1, 1, 2, 2, 3, 3, 4, 4, 4]
    hidden = [torch.randn(2, 40, 8) for _ in range(5)]
    features = head(hidden)
    expected = head.map(sum(head.norm(hidden[i]) for i in head.layer_indices) / 9)
    torch.testing.assert_close(features, expected)
    # Two frames of 2 x 3 cells are 1 + 2 * 4 tokens each; one frame of 1 x 1 is 3.
    is_video_token = torch.zeros(2, 40, dtype=torch.bool)
    is_video_token[0, 5:23], is_video_token[1, 1:4] = True, True
    targets = [torch.randn(2, 2, 3, 6), torch.randn(1, 1, 1, 6)]
    actual = head.distance(features, is_video_token, targets)
    distances = []
    for frame in range(2):
        for row in range(2):
            for column in range(3):
                at = 5 + frame * 9 + 1 + row * 4 + column
                distances.append(1 - F.cosine_similarity(features[0, at], targets[0][frame, row, column], dim=0))
    distances.append(1 - F.cosine_similarity(features[1, 2], targets[1][0, 0, 0], dim=0))
    torch.testing.assert_close(actual, torch.stack(distances).mean())
    is_video_token[0, 22] = False
    with pytest.raises(UserError, match="were cut"):
        head.distance(features, is_video_token, targets)


def test_the_teacher_sees_four_frames_together_and_a_vector_a_cell(
    tiny_setup: TinySetup, folder: Path, teacher: Path
) -> None:
    model = build.create(stage(tiny_setup, folder, ["tower"], teacher=str(teacher)))
    tower = distillation.Teacher(model, stage(tiny_setup, folder, ["tower"], teacher=str(teacher)))
    videos = [torch.randn(8, 3, 112, 112), torch.randn(4, 3, 84, 112)]
    square, wide = tower.teacher_features(videos, torch.device("cpu"))
    assert square.shape == (8, 4, 4, WIDTH)
    assert wide.shape == (4, 3, 4, WIDTH)
    changed_video = videos[0].clone()
    changed_video[5] += 1
    changed = tower.teacher_features([changed_video], torch.device("cpu"))[0] != square
    assert not changed[:4].any()
    assert changed[4:].any(-1).all()


def test_three_stages(tiny_setup: TinySetup, folder: Path, teacher: Path, tmp_path: Path) -> None:
    start = build.load_base(stage(tiny_setup, folder, []).base).state_dict()
    train.main(stage(tiny_setup, folder, ["tower", "projector"], teacher=str(teacher)), tmp_path / "align")
    first = load_file(tmp_path / "align/final" / trainable.BASE_FILE)
    assert trained_parts(first) == {"tower", "projector", "distillation head"}
    # Batch norm learns too: its running mean has moved.
    moved = {name for name, x in first.items() if name in start and not torch.equal(x, start[name])}
    assert any(name.endswith("running_mean") for name in moved)
    before = str(tmp_path / "align/final")
    everything = ["tower", "projector", "llm"]
    train.main(stage(tiny_setup, folder, everything, before, str(teacher)), tmp_path / "pretrain")
    second = load_file(tmp_path / "pretrain/final" / trainable.BASE_FILE)
    assert trained_parts(second) == {"tower", "projector", "distillation head", "llm"}
    train.main(stage(tiny_setup, folder, everything, str(tmp_path / "pretrain/final")), tmp_path / "tuned")
    third = load_file(tmp_path / "tuned/final" / trainable.BASE_FILE)
    assert trained_parts(third) == {"tower", "projector", "llm"}
    model, _ = build.load(tmp_path / "tuned/final")
    assert all(torch.equal(model.base.state_dict()[name], x) for name, x in third.items())
    log = json.loads((tmp_path / "align/log.json").read_text())
    answers = json.loads((tmp_path / "tuned/log.json").read_text())
    assert log[0]["loss"] > answers[0]["loss"] + 0.5  # a cosine of about zero counts as one


def test_a_teacher_needs_a_base_with_such_stages_and_a_pupil(
    tiny_setup: TinySetup, folder: Path, teacher: Path
) -> None:
    with pytest.raises(UserError, match=r"set base\.trainable"):
        build.create(stage(tiny_setup, folder, [], teacher=str(teacher)))
    config = dataclasses.replace(make_config(*tiny_setup), distill_from=str(teacher))
    with pytest.raises(UserError, match="llava_onevision has no such stage"):
        build.create(config)
