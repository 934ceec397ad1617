"""What does not fit a loaded model is refused, and the model stays as it was."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from helpers.random_checkpoints import make_folders, tensors
from helpers.tiny_model import TinySetup
from safetensors.torch import load_file, save_file

from pave.checkpoints import build, hot_swap
from pave.models import lora
from pave.types import UserError


@pytest.fixture(scope="module")
def folders(tiny_setup: TinySetup, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_folders(tiny_setup, tmp_path_factory.mktemp("folders"))


def drop(folder: Path, file: str, word: str) -> None:
    state = {k: x for k, x in load_file(folder / file).items() if word not in k}
    save_file(state, folder / file)


def replace(folder: Path, old: str, new: str) -> None:
    text = (folder / "pave.yaml").read_text()
    assert old in text
    (folder / "pave.yaml").write_text(text.replace(old, new))


BROKEN = {
    "patch tensor": (lambda f: drop(f, "patch.safetensors", "out_norm.bias"), "'music.out_norm.bias' is missing"),
    "lora tensor": (lambda f: drop(f, "adapter_model.safetensors", "up_proj.lora_A"), "up_proj.lora_A.weight' is mis"),
    "rank": (lambda f: replace(f, "r: 4", "r: 8"), r"has shape \(4, \d+\), expected \(8, \d+\)"),
    "no lora": (lambda f: (f / "adapter_model.safetensors").unlink(), "adapter_model.safetensors: no such file"),
    "cut off": (lambda f: (f / "patch.safetensors").write_bytes(b"\0" * 20), "not a whole safetensors file"),
    "another base": (lambda f: replace(f, "path: ", "path: other"), "base.path is 'other.*expected the same base"),
    "newline": (lambda f: replace(f, "newline: grid", "newline: frame"), "base.newline is 'frame'"),
    "weight": (lambda f: replace(f, "weight: 1.0", "weight: .nan"), "'music': weight nan"),
    "key": (lambda f: replace(f, "side_hidden_dim", "side_hiddendim"), "did you mean 'side_hidden_dim'"),
    "not ours": (lambda f: (f / "pave.yaml").unlink(), "no pave.yaml in it"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_an_error_changes_nothing(folders: dict[str, Path], tmp_path: Path, how: str) -> None:
    damage, message = BROKEN[how]
    shutil.copytree(folders["music"], tmp_path / "music")
    damage(tmp_path / "music")
    model, config = build.load(folders["two_patches"])
    model.set_patches({"audio": 0.5})
    before = tensors(model)
    for change in (
        lambda: hot_swap.add(model, config, "more", tmp_path / "music"),
        lambda: hot_swap.hotswap(model, config, tmp_path / "music"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            change()
        assert "\n" not in str(caught.value)
        after = tensors(model)
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], x) for name, x in before.items())


def test_wrong_names_and_weights(folders: dict[str, Path]) -> None:
    model, config = build.load(folders["two_patches"])
    for wrong, message in (({"audoi": 1.0}, "did you mean 'audio'"), ({"audio": float("inf")}, "finite number")):
        with pytest.raises(UserError, match=message):
            model.set_patches(wrong)
    assert model.patch_weights == {"audio": 1.0, "dense": 1.0}
    for name in ("audio", "default"):
        with pytest.raises(UserError, match=f"already has a patch or LoRA '{name}'"):
            hot_swap.add(model, config, name, folders["music"])
    for name in ("", "a.b", "items"):
        with pytest.raises(UserError, match="cannot name a patch"):
            hot_swap.add(model, config, name, folders["music"])
    with pytest.raises(UserError, match="has no patch to add"):
        hot_swap.add(model, config, "more", folders["lora_only"])
    with pytest.raises(UserError, match=r"base\.frames is '4', this model's is '8'"):
        hot_swap.add(
            model, dataclasses.replace(config, base=dataclasses.replace(config.base, frames=8)), "m", folders["music"]
        )
    with pytest.raises(UserError, match="no patch 'sound'; known: audio, dense"):
        hot_swap.remove(model, config, "sound")


def test_merged_lora_is_refused(folders: dict[str, Path]) -> None:
    model, config = build.load(folders["audio"])
    lora.merge(model.base.hf)
    before = tensors(model)
    for change in (
        lambda: model.set_patches({"audio": 0.5}),
        lambda: hot_swap.add(model, config, "music", folders["music"]),
        lambda: hot_swap.remove(model, config, "audio"),
        lambda: hot_swap.hotswap(model, config, folders["music"]),
    ):
        with pytest.raises(UserError, match="merged into this model's weights"):
            change()
    assert all(torch.equal(x, before[name]) for name, x in tensors(model).items())
    assert model.patch_weights == {"audio": 1.0}
