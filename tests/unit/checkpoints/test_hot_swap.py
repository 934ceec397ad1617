"""Several patches on one model: switched, weighted, added, removed, swapped."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.random_checkpoints import SMALL, make_batch, make_folders, tensors
from helpers.tiny_model import TinySetup
from torch import Tensor

from pave.checkpoints import build, hot_swap, patch_folder
from pave.config import Config, PatchConfig
from pave.data.collate import collate
from pave.data.dataset import QuestionDataset, make_sample
from pave.media.video import read_clip
from pave.models.base import LoadSettings
from pave.models.bases import llava_onevision
from pave.models.patched_model import PatchedModel
from pave.types import UserError


@pytest.fixture(scope="module")
def folders(tiny_setup: TinySetup, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_folders(tiny_setup, tmp_path_factory.mktemp("folders"))


def logits(model: PatchedModel, batch: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return model(**batch)["logits"]


def answers(model: PatchedModel, batch: dict[str, Any]) -> Tensor:
    return model.generate(**batch, max_new_tokens=8, min_new_tokens=8)


def rename_side(batch: dict[str, Any], *names: str) -> dict[str, Any]:
    """A batch with its first side-channel under these names instead."""
    return {**batch, "sides": dict.fromkeys(names, next(iter(batch["sides"].values())))}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_switching_gives_the_bits_of_fresh_loads(folders: dict[str, Path], dtype: str) -> None:
    settings = [f"base.dtype={dtype}"]
    one, first = build.load(folders["audio"], settings)
    two, _ = build.load(folders["music"], settings)
    model, config = build.load(folders["audio"], settings)
    config = hot_swap.add(model, config, "music", folders["music"], settings)
    prompts, scored = (rename_side(make_batch(first, model, left), "audio", "music") for left in (True, False))
    base_only = PatchedModel(
        llava_onevision.Base.load(config.base.path, LoadSettings(getattr(torch, dtype))), {}
    ).eval()
    expected = {"audio": one, "music": two, "": base_only}
    assert len({str(answers(m, prompts).tolist()) for m in expected.values()}) == 3
    for name in ("audio", "music", "audio", "", "music"):
        model.set_patches({name: 1.0} if name else {})
        assert torch.equal(answers(model, prompts), answers(expected[name], prompts)), name
        assert torch.equal(logits(model, scored), logits(expected[name], scored)), name


def test_switching_touches_no_tensor(folders: dict[str, Path]) -> None:
    model, config = build.load(folders["audio"])
    hot_swap.add(model, config, "music", folders["music"])
    before = {name: (x.data_ptr(), x._version) for name, x in model.named_parameters()}
    for name in ("audio", "music"):
        model.set_patches({name: 1.0})
        assert {name: (x.data_ptr(), x._version) for name, x in model.named_parameters()} == before


def test_patches_switched_off_are_not_computed(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model, config = build.load(folders["two_patches"])
    batch = rename_side(make_batch(config, model), "audio", "dense")
    model.set_patches({"dense": 1.0, "audio": 0.0})
    calls: list[str] = []
    for name, patch in model.patches.items():
        patch.register_forward_hook(lambda *_, name=name: calls.append(name))
    logits(model, batch)
    assert calls == ["dense"]


def test_weights_scale_updates_and_lora(folders: dict[str, Path]) -> None:
    model, config = build.load(folders["two_patches"])
    batch = rename_side(make_batch(config, model), "audio", "dense")
    pixels, sides, seconds = batch["pixels"], batch["sides"], batch["frame_seconds"]

    def fused(weights: dict[str, float]) -> Tensor:
        model.set_patches(weights)
        with torch.no_grad():
            return model.fuse(pixels, sides, seconds).double()

    none, audio, dense = fused({}), fused({"audio": 1.0}), fused({"dense": 1.0})
    mixed = fused({"audio": 0.5, "dense": -2.0})
    torch.testing.assert_close(mixed - none, 0.5 * (audio - none) - 2.0 * (dense - none), atol=1e-5, rtol=1e-5)
    # The folder's LoRA is as strong as the strongest of its patches.
    layer = model.base.llm.layers[0].mlp.up_proj
    x = torch.randn(3, layer.in_features)
    with torch.no_grad():
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        update = (x @ a.T @ b.T) * (4 / 3)
        for weights, factor in (({"audio": 0.5, "dense": -2.0}, -2.0), ({"audio": 0.5}, 0.5), ({}, 0.0)):
            model.set_patches(weights)
            torch.testing.assert_close(layer(x), layer.base_layer(x) + factor * update)


def test_a_sample_without_one_of_two_channels(folders: dict[str, Path]) -> None:
    model, config = build.load(folders["two_patches"])
    data = QuestionDataset(config, model.base, "train", with_answers=True)
    first, second = data[0], data[4]
    without_audio = second._replace(sides={**second.sides, "audio": None})
    both, half = (collate([first, other], 0) for other in (second, without_audio))
    with torch.no_grad():
        model.set_patches({"dense": 1.0})
        dense_only = model.fuse(both["pixels"], both["sides"], both["frame_seconds"])
        model.set_patches({"audio": 1.0, "dense": 1.0})
        mixed = model.fuse(half["pixels"], half["sides"], half["frame_seconds"])
        complete = model.fuse(both["pixels"], both["sides"], both["frame_seconds"])
    assert torch.equal(mixed[1], dense_only[1])
    torch.testing.assert_close(mixed[0], complete[0])
    assert not torch.equal(complete[1], dense_only[1])


def test_switching_within_a_conversation(folders: dict[str, Path]) -> None:
    fresh = {name: build.load(folders[name])[0] for name in ("audio", "music")}
    model, config = build.load(folders["audio"])
    hot_swap.add(model, config, "music", folders["music"])
    data = QuestionDataset(config, model.base, "test", with_answers=False)
    sample, clip = data[0], read_frames(data)
    history: tuple[tuple[str, str], ...] = ()
    for name, question in (("audio", "Which sound is heard?"), ("music", "And now?"), ("audio", "Are you sure?")):
        turn = make_sample(config, model.base, question, clip, sample.sides, history)
        batch = rename_side(collate([turn], 0, left=True), "audio", "music")
        del batch["labels"]
        model.set_patches({name: 1.0})
        new = answers(model, batch)
        assert torch.equal(new, answers(fresh[name], batch))
        history += ((question, model.base.tokenizer.decode(new[0])),)


def read_frames(data: QuestionDataset) -> Any:
    return read_clip(data.visual_files(data.questions[0])[0], 4)


def test_add_and_remove(folders: dict[str, Path], tmp_path: Path) -> None:
    model, first = build.load(folders["audio"])
    before, random = tensors(model), torch.get_rng_state()
    config = hot_swap.add(model, first, "music", folders["music"])
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module.training for module in model.modules())
    config = hot_swap.add(model, config, "avsd", folders["two_patches"])
    assert list(model.patches) == list(config.sides) == ["audio", "music", "avsd_audio", "avsd_dense"]
    assert model.lora_patches == {"default": ["audio"], "music": ["music"], "avsd": ["avsd_audio", "avsd_dense"]}
    with pytest.raises(UserError, match=r"several LoRAs \(default, music, avsd\)"):
        patch_folder.save(model, config, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    for name in ("avsd_dense", "music", "avsd_audio"):
        config = hot_swap.remove(model, config, name)
    assert config == first
    after = tensors(model)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], x) for name, x in before.items())


def test_the_remaining_patch_can_be_saved(folders: dict[str, Path], tmp_path: Path) -> None:
    model, config = build.load(folders["audio"])
    config = hot_swap.add(model, config, "music", folders["music"])
    config = hot_swap.remove(model, config, "audio")
    model.set_patches({"music": 0.5})
    patch_folder.save(model, config, tmp_path / "rest")
    again, read = build.load(tmp_path / "rest")
    assert (read.lora.r, read.lora.alpha, read.lora.dropout) == (4, 6, 0.1)
    assert read.sides["music"].weight == 0.5
    batch = rename_side(make_batch(config, model), "music")
    assert torch.equal(logits(again, batch), logits(model, batch))


@pytest.mark.parametrize(
    ("start", "end"),
    [("audio", "two_patches"), ("two_patches", "patch_only"), ("patch_only", "music"), ("audio", "lora_only")],
)
def test_hotswap_gives_the_bits_of_a_fresh_load(folders: dict[str, Path], start: str, end: str) -> None:
    fresh, expected = build.load(folders[end])
    model, config = build.load(folders[start])
    model.set_patches({})
    config = hot_swap.hotswap(model, config, folders[end])
    assert config == expected
    batch = rename_side(make_batch(side_like(config), model), *config.sides)
    assert torch.equal(logits(model, batch), logits(fresh, batch))
    actual, theirs = tensors(model), tensors(fresh)
    emptied = {name.replace(".base_layer", "") for name in actual}
    assert emptied == {name.replace(".base_layer", "") for name in theirs}
    assert not any(module.training for module in model.modules())


def side_like(config: Config) -> Config:
    """A config with one audio side, to read the tiny features."""
    return dataclasses.replace(config, sides={"audio": PatchConfig(**SMALL)})
