"""Parts of the base that learn too: exactly these change, are stored, come back, and go on in a next stage."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from helpers.paths import ROOT
from helpers.tiny_bases import make_internvl, make_original, make_port, make_ppllava, make_qwen, make_qwen3, randomise
from helpers.tiny_model import TinySetup, make_base, make_config
from safetensors.torch import load_file, save_file

from pave import config as configs
from pave.checkpoints import build, hot_swap, patch_folder
from pave.config import BaseConfig, Config, DataConfig, LoraConfig, PatchConfig
from pave.data.collate import collate
from pave.data.dataset import make_sample
from pave.models import trainable
from pave.models.patched_model import PatchedModel
from pave.models.trainable import outermost_modules
from pave.tasks.base import get_task
from pave.training import mixture, recipe, train
from pave.types import Clip, SideTokens, UserError, VideoTokens

ALONE = LoraConfig(r=0)
MAKE = {
    "llava_onevision": make_base,
    "video_llava": make_port,
    "video_llava original": make_original,
    "qwen2_5_vl": make_qwen,
    "qwen3_vl": make_qwen3,
    "internvl": make_internvl,
    "ppllava": make_ppllava,
}
SYSTEMS = sorted((ROOT / "configs/systems").glob("*.yaml"))


def tuned(
    tiny_setup: TinySetup, learn: list[str], init: str = "", lora: LoraConfig = ALONE, **settings: object
) -> Config:
    config = make_config(*tiny_setup, **{"max_steps": 2, "learning_rate": 1e-2, **settings})
    base = dataclasses.replace(config.base, trainable=learn, init_from=init)
    return dataclasses.replace(config, base=base, lora=lora)


@pytest.mark.parametrize("learn", [["projector"], ["llm"], ["tower", "projector"]], ids="+".join)
def test_these_parts_learn_and_come_back(tiny_setup: TinySetup, tmp_path: Path, learn: list[str]) -> None:
    config = tuned(tiny_setup, learn)
    before = build.load_base(config.base).state_dict()
    train.main(config, tmp_path)
    stored = load_file(tmp_path / "final" / trainable.BASE_FILE)
    after = build.load(tmp_path / "final")[0].base.state_dict()
    assert {trainable.setting_of(name) for name in stored} == {*learn}
    changed = {name for name, x in after.items() if not torch.equal(x, before[name])}
    assert {trainable.setting_of(name) for name in changed} == {*learn}
    for name, tensor in stored.items():
        assert torch.equal(after[name], tensor)
    assert len(changed & {*stored}) > 0.8 * len(stored)  # an unused bias or norm may rest


@pytest.mark.parametrize("name", MAKE)
def test_all_that_learns_is_used(name: str, tmp_path: Path) -> None:
    """Ranks that share parameters wait for each gradient, a resumed run for what the optimizer knows of each."""
    path = str(MAKE[name](tmp_path))
    base = BaseConfig(name.split()[0], path, frames=8, dtype="float32", trainable=["tower", "llm"])
    if name != "llava_onevision":
        base = dataclasses.replace(base, newline="no_token")
    start = Config(base=base, lora=ALONE, data=DataConfig(max_length=4096))
    if any(trainable.setting_of(n) == "projector" for n, _ in build.load_base(base).named_parameters()):
        start = dataclasses.replace(start, base=dataclasses.replace(base, trainable=["tower", "projector", "llm"]))
    model = build.create(start).train()
    clip = Clip(np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), np.uint8), np.arange(8) / 2)
    batch = collate([make_sample(start, model.base, "what?", clip, {}, answer="a dog")], 0)
    model(**batch)["loss"].backward()
    learns = {n: p for n, p in model.base.named_parameters() if p.requires_grad}
    assert [n for n, p in learns.items() if p.grad is None] == []
    assert {trainable.setting_of(n) for n in learns} == {*start.base.trainable}


class Step(NamedTuple):
    """One training step."""

    model: PatchedModel
    loss: torch.Tensor
    tokens: VideoTokens
    forward: Counter[torch.nn.Module]
    """How often each module of the tower ran until there was a loss."""
    later: Counter[torch.nn.Module]
    """And again, for the backward pass."""


def step(name: str, folder: Path, learn: list[str], checkpointing: bool) -> Step:
    """Of a tiny base with a patch, and with LoRA or what else learns; with the switches that the Trainer sets."""
    newline = "grid" if name == "llava_onevision" else "no_token"
    config = Config(
        base=BaseConfig(name.split()[0], str(folder), frames=8, dtype="float32", newline=newline, trainable=learn),
        sides={"audio": PatchConfig(side_dim=12, hidden_dim=16, side_hidden_dim=16)},
        lora=LoraConfig(r=2, alpha=4, dropout=0.0),
        data=DataConfig(max_length=4096),
    )
    torch.manual_seed(0)
    model = build.create(config).train()
    randomise([*model.patches.parameters(), *(x for n, x in model.named_parameters() if "lora_B" in n)])
    if checkpointing and hasattr(model.base.hf, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable({"use_reentrant": False})
    elif checkpointing:  # older transformers
        model.gradient_checkpointing_enable({"use_reentrant": False})
    calls: Counter[torch.nn.Module] = Counter()
    for tower in outermost_modules(model.base, "vision tower"):
        for module in tower.modules():
            module.register_forward_hook(lambda module, *_: calls.update([module]))
    encode, encoded = model.base.encode, []
    model.base.encode = lambda *inputs: encoded.append(encode(*inputs)) or encoded[-1]
    clip = Clip(np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), np.uint8), np.arange(8) / 2)
    sides = {"audio": SideTokens(torch.randn(9, 1, 12, generator=torch.Generator().manual_seed(0)))}
    loss = model(**collate([make_sample(config, model.base, "what?", clip, sides, answer="a dog")], 0))["loss"]
    forward = calls.copy()
    loss.backward()
    return Step(model, loss.detach(), encoded[0], forward, calls - forward)


def gradients(model: PatchedModel) -> dict[str, torch.Tensor]:
    """Of all that learns, by name."""
    return {name: x.grad for name, x in model.named_parameters() if x.grad is not None}


@pytest.mark.parametrize("name", MAKE)
def test_a_tower_that_is_frozen_runs_once_and_never_backwards(name: str, tmp_path: Path) -> None:
    folder = MAKE[name](tmp_path)
    actual, expected = (step(name, folder, [], checkpointing) for checkpointing in (True, False))
    assert actual.forward
    assert not actual.later
    assert not actual.tokens.query.requires_grad
    assert not actual.tokens.embeds.requires_grad
    assert torch.equal(actual.loss, expected.loss)
    grads = gradients(actual.model)
    assert {trainable.part_of(n) for n in grads} == {"patch audio", "LoRA"}
    assert any(x.abs().max() > 0 for n, x in grads.items() if n.startswith("patches"))
    torch.testing.assert_close(grads, gradients(expected.model))


@pytest.mark.parametrize("learn", [["projector"], ["tower", "projector"]], ids="+".join)
def test_only_a_tower_below_all_that_trains_skips_autograd(learn: list[str], tmp_path: Path) -> None:
    folder = make_base(tmp_path)
    actual, expected = (step("llava_onevision", folder, learn, checkpointing) for checkpointing in (True, False))
    assert bool(actual.later) == actual.tokens.query.requires_grad == ("tower" in learn)
    assert actual.tokens.embeds.requires_grad
    grads = gradients(actual.model)
    assert {trainable.setting_of(n) or trainable.part_of(n) for n in grads} == {"patch audio", "LoRA", *learn}
    torch.testing.assert_close(grads, gradients(expected.model))
    assert torch.is_grad_enabled()


def test_a_next_stage_keeps_what_the_first_one_learnt(tiny_setup: TinySetup, tmp_path: Path) -> None:
    train.main(tuned(tiny_setup, ["tower", "projector"]), tmp_path / "one")
    first = load_file(tmp_path / "one/final" / trainable.BASE_FILE)
    train.main(tuned(tiny_setup, ["llm"], init=str(tmp_path / "one/final")), tmp_path / "two")
    stored = load_file(tmp_path / "two/final" / trainable.BASE_FILE)
    assert {trainable.setting_of(name) for name in stored} == {"tower", "projector", "llm"}
    assert all(torch.equal(stored[name], x) for name, x in first.items())
    # The second folder needs the first no more.
    (tmp_path / "one").rename(tmp_path / "gone")
    model, _ = build.load(tmp_path / "two/final")
    assert all(torch.equal(model.base.state_dict()[name], x) for name, x in stored.items())


def test_a_resumed_run_repeats_the_unbroken_one(tiny_setup: TinySetup, tmp_path: Path) -> None:
    config = tuned(tiny_setup, ["projector", "llm"], max_steps=4, save_steps=2)
    train.main(config, tmp_path / "whole")
    train.main(config, tmp_path / "again")
    for later in ("checkpoint-4", "final"):
        for file in (tmp_path / "again" / later).iterdir():
            file.unlink()
        (tmp_path / "again" / later).rmdir()
    train.main(config, tmp_path / "again", resume=True)
    complete, again = (load_file(tmp_path / f / "final" / trainable.BASE_FILE) for f in ("whole", "again"))
    assert all(torch.equal(complete[name], again[name]) for name in complete)


def test_lora_and_projector_learn_together(tiny_setup: TinySetup) -> None:
    model = build.create(tuned(tiny_setup, ["projector"], lora=LoraConfig(r=2, alpha=4)))
    names = {name for name, p in model.base.named_parameters() if p.requires_grad}
    assert {trainable.setting_of(name) for name in names if "lora" not in name} == {"projector"}
    assert any("lora_A" in name for name in names)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trainable": ["projectr"]}, "no part 'projectr'; did you mean 'projector'"),
        ({"trainable": ["llm"], "dtype": "bfloat16"}, "set base.dtype=float32"),
        ({"init_from": "nowhere"}, "nowhere/base.safetensors"),
    ],
)
def test_settings_that_do_not_fit(tiny_setup: TinySetup, change: dict, message: str) -> None:
    config = make_config(*tiny_setup)
    config = dataclasses.replace(config, base=dataclasses.replace(config.base, **change), lora=ALONE)
    with pytest.raises(UserError, match=message):
        build.create(config)


def test_two_ways_for_the_llm_to_learn_are_one_too_many(tiny_setup: TinySetup) -> None:
    with pytest.raises(UserError, match=r"lora\.r=0"):
        build.create(tuned(tiny_setup, ["llm"], lora=LoraConfig(r=2)))


def test_tensors_of_another_base_are_named(tiny_setup: TinySetup, tmp_path: Path) -> None:
    save_file({"hf.nothing.weight": torch.zeros(2)}, tmp_path / trainable.BASE_FILE)
    with pytest.raises(UserError, match=r"hf\.nothing\.weight"):
        build.create(tuned(tiny_setup, ["llm"], init=str(tmp_path)))


def test_such_a_folder_is_not_put_on_another_model(tiny_setup: TinySetup, tmp_path: Path) -> None:
    config = tuned(tiny_setup, ["projector"])
    patch_folder.save(build.create(config), config, tmp_path / "tuned")
    plain = make_config(*tiny_setup)
    model = build.create(plain)
    with pytest.raises(UserError, match="load it alone"):
        hot_swap.add(model, plain, "other", tmp_path / "tuned")


@pytest.mark.parametrize("file", SYSTEMS, ids=lambda file: file.stem)
def test_recipes_of_whole_models_are_whole(file: Path) -> None:
    config = configs.load(file)
    recipe.check_arguments(config)
    assert {*config.base.trainable} <= {"tower", "projector", "llm"}
    assert config.base.dtype == "float32"
    assert config.lora.r == 0
    for one in mixture.task_configs(config).values():
        assert "train" in get_task(one.data.task).splits
    assert (file.parents[2] / config.train["deepspeed"]).is_file()
