"""Two side-channels in one official folder against the official code (tests/golden/e2e, f_multi_*)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.official_runs import CONFIG, SUMMARY, arrays, audio, check_run, generate, inputs
from helpers.official_runs_two_sides import BOTH, SIDES, put_together
from torch.testing import assert_close

from pave.checkpoints import official
from pave.config import Config, PatchConfig
from pave.models import lora
from pave.models.patched_model import PatchedModel
from pave.types import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put_together(tmp_path_factory.mktemp("multi"))


@pytest.fixture
def model(folder: Path) -> PatchedModel:
    return official.load(folder, Config(base=CONFIG, sides=SIDES))[0]


def test_both_channels(model: PatchedModel) -> None:
    check_run(model, "f_multi_b1", BOTH)


def test_neither_channel(model: PatchedModel) -> None:
    check_run(model, "f_multi_no_feats", {})


@pytest.mark.parametrize("side", ["dense", "audio"])
def test_one_channel_missing(model: PatchedModel, side: str) -> None:
    """The official model then drops both patches, with the outputs of `f_multi_no_feats`; ours adds what is there."""
    for name in ("f_multi_first_missing", "f_multi_second_missing"):
        assert SUMMARY[name]["loss"] == SUMMARY["f_multi_no_feats"]["loss"]
    batch = inputs(model, "f_multi_b1")
    with torch.no_grad():
        base_only, one, both = (
            model.splice(batch["ids"], batch["pixels"], sides) for sides in ({}, {side: BOTH[side]}, BOTH)
        )
        (other,) = BOTH.keys() - {side}
        rest = model.splice(batch["ids"], batch["pixels"], {other: BOTH[other]})
    assert not torch.equal(one, base_only)
    assert_close(one + rest - base_only, both, atol=1e-5, rtol=0)


def test_the_first_alone_is_the_official_single_channel_model(model: PatchedModel) -> None:
    batch, data = inputs(model, "g_languagebind"), arrays("g_languagebind")
    with torch.no_grad():
        embeds = model.splice(batch["ids"], batch["pixels"], {"dense": BOTH["dense"]})
    assert_close(embeds[:, data["embeds_rows"]], data["embeds"], atol=1e-4, rtol=0)


def test_gradients(model: PatchedModel) -> None:
    """The first patch frozen, LoRA and the second training, as in the official recipe."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or name.startswith("patches.audio"))
    sides = {
        "dense": audio("languagebind/vid_a", "languagebind/vid_b")["audio"],
        **audio("audio/vid_a", "audio/vid_b"),
    }
    model(**inputs(model, "c_batch2", "ab"), sides=sides)["loss"].backward()
    prefix, actual = "base_model.model.model.", {}
    for name, parameter in model.named_parameters():
        if name.startswith("patches.audio."):
            released = official.patch_name(name.removeprefix("patches.audio."))
            actual[f"{prefix}temporal_aggregator2.{released}"] = parameter.grad
        elif parameter.requires_grad:
            actual[prefix + name.removeprefix("base.hf.model.language_model.")] = parameter.grad
        else:
            assert parameter.grad is None, name
    norms = SUMMARY["f_multi_grads"]
    assert actual.keys() == norms.keys()
    assert {name for name, grad in actual.items() if grad is None} == {name for name, n in norms.items() if n is None}
    for name, expected in norms.items():
        if expected is not None:
            assert actual[name].norm().item() == pytest.approx(expected, rel=1e-3), name
    for name, stored in arrays("f_multi_grads").items():
        assert (actual[name] - stored).norm() < 1e-3 * stored.norm(), name


def test_generation_token_by_token(model: PatchedModel) -> None:
    lora.merge(model.base.hf)
    for question, expected in SUMMARY["f_multi_generate"].items():
        encoded = model.base.chat(question)
        assert encoded.ids == expected["ids"]
        assert generate(model, encoded.ids, BOTH, max_new_tokens=12) == expected["tokens"][1:], question


@pytest.mark.parametrize("sides", [{}, {"audio": PatchConfig()}, {**SIDES, "exo": PatchConfig()}])
def test_the_sides_must_be_named_in_order(folder: Path, sides: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"2 patches.*name each side in the order of the patches.*sides.dense=\{\}"):
        official.read_official(folder, Config(base=CONFIG, sides=sides))


def test_each_side_keeps_what_is_given_for_it(folder: Path) -> None:
    settings = {"dense": PatchConfig(features="a"), "audio": PatchConfig(features="b")}
    config = official.read_official(folder, Config(base=CONFIG, sides=settings)).config
    assert list(config.sides) == ["dense", "audio"]
    assert [side.features for side in config.sides.values()] == ["a", "b"]
    assert [(side.side_dim, side.hidden_dim, side.num_layers) for side in config.sides.values()] == [(32, 64, 2)] * 2


def test_a_wrong_tensor_of_the_second_patch_is_named(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    state = torch.load(folder / "non_lora_trainables.bin", weights_only=True)
    del state["base_model.model.model.temporal_aggregator2.cross_attn_layers.1.ffn.3.weight"]
    torch.save(state, tmp_path / "non_lora_trainables.bin")
    config = Config(base=CONFIG, sides=SIDES)
    with pytest.raises(UserError, match=r"'temporal_aggregator2.cross_attn_layers.1.ffn.3.weight' is missing"):
        official.load(tmp_path, config)
