"""What trains, what starts from a trained folder, and the published recipe of two side-channels."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from helpers.paths import ROOT
from helpers.random_checkpoints import SMALL, make_folders, save_trained, side_config
from helpers.tiny_model import SIDE_DIM, TinySetup
from safetensors.torch import load_file

from pave import config as configs
from pave.checkpoints import build, patch_folder
from pave.media import feature_files
from pave.models import lora
from pave.models.patched_model import PatchedModel
from pave.training import recipe, train
from pave.types import SideTokens, UserError

RECIPE = ROOT / "configs/multiple_side_channels.yaml"


def trained_names(model: PatchedModel) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_what_trains_is_what_the_config_says(tiny_setup: TinySetup, tmp_path: Path) -> None:
    every = trained_names(build.create(side_config(tiny_setup, {"audio": {}, "dense": {}})))
    parts = {part: {n for n in every if n.startswith(part)} for part in ("patches.audio.", "patches.dense.", "base.")}
    assert all(parts.values())
    assert set().union(*parts.values()) == every
    for audio, dense, adapter in ((True, False, True), (False, True, True), (True, True, False), (False, False, True)):
        config = side_config(
            tiny_setup, {"audio": {"trainable": audio}, "dense": {"trainable": dense}}, trainable=adapter
        )
        expected = [names for names, on in zip(parts.values(), (audio, dense, adapter)) if on]
        model = build.create(config)
        assert trained_names(model) == set().union(*expected)
        # Switching leaves it, and so do groups of the optimizer and reading back.
        model.set_patches({"dense": 1.0})
        assert trained_names(model) == set().union(*expected)
        groups = train.parameter_groups(config, model, recipe.training_arguments(config, tmp_path))
        assert sum(len(group["params"]) for group in groups) == sum(map(len, expected))
        patch_folder.save(model, config, tmp_path / "folder")
        assert trained_names(build.load(tmp_path / "folder")[0]) == set().union(*expected)


def write_dense(root: Path) -> None:
    """Dense features for the clips of the tiny data: four tokens a step."""
    for i, video in enumerate(sorted((root / "videos").glob("*.mp4"))):
        x = torch.randn(6 + i % 2, 4, SIDE_DIM, generator=torch.Generator().manual_seed(100 + i))
        meta = feature_files.Meta("dense", "languagebind_video", video.name)
        feature_files.write(root / "features/dense" / f"{video.stem}.safetensors", SideTokens(x), meta)


def test_the_published_recipe_of_two_channels(tiny_setup: TinySetup, tmp_path: Path) -> None:
    """One YAML: the first patch from a folder and frozen, the second new, that folder's LoRA trained further."""
    write_dense(tiny_setup.data)
    trained = save_trained(side_config(tiny_setup, {"dense": {"side": ""}}), tmp_path / "video", 0)
    small = [
        f"sides.{side}.{key}={SMALL[key]}"
        for side in ("dense", "audio")
        for key in ("side_dim", "hidden_dim", "side_hidden_dim")
    ]
    tiny = {key: value for key, value in side_config(tiny_setup, {}).train.items() if key != "learning_rate"}
    config = configs.load(
        RECIPE,
        [
            *(f"base.path={tiny_setup.base}", "base.frames=4", "base.dtype=float32", *small),
            *("data.task=sideworld", f"data.root={tiny_setup.data}", "data.labels=answers", "train.learning_rate=1e-2"),
            *(f"lora.init_from={trained}", "lora.r=2", "lora.alpha=4", "sides.audio.features=features/audio"),
            *(f"train.{key}={value}" for key, value in tiny.items()),
        ],
    )
    assert list(config.sides) == ["dense", "audio"]
    start = build.create(config)
    source = load_file(trained / "patch.safetensors")
    assert all(torch.equal(x, source[f"dense.{name}"]) for name, x in start.patches["dense"].state_dict().items())
    assert start.patches["audio"].out_norm.weight.abs().max() == 0
    adapter = load_file(trained / "adapter_model.safetensors")
    assert all(torch.equal(x, adapter[name]) for name, x in lora.state(start.base.hf).items())
    assert {n.split(".")[1] for n in trained_names(start)} == {"audio", "hf"}

    train.main(config, tmp_path / "run")
    shutil.rmtree(trained)  # what was trained stands on its own
    model, read = build.load(tmp_path / "run/final")
    assert read == config
    assert all(torch.equal(x, source[f"dense.{name}"]) for name, x in model.patches["dense"].state_dict().items())
    assert model.patches["audio"].out_norm.weight.abs().max() > 0
    changed = {name for name, x in lora.state(model.base.hf).items() if not torch.equal(x, adapter[name])}
    assert changed == set(adapter)


def test_a_start_that_does_not_fit(tiny_setup: TinySetup, tmp_path: Path) -> None:
    folders = make_folders(tiny_setup, tmp_path)
    both, music = folders["two_patches"], folders["music"]
    for sides, settings, message in (
        ({"audio": {"init_from": str(both), "heads": 2}}, {}, "patch 'audio' has heads=4, sides.audio has 2"),
        ({"audio": {"init_from": str(music)}}, {}, "patch 'music' has hidden_dim=8, sides.audio has 16"),
        (
            {"sound": {"init_from": str(both)}},
            {},
            r"has the patches \['audio', 'dense'\], sides.sound.init_from needs 'sound'",
        ),
        ({"audio": {"init_from": str(folders["lora_only"])}}, {}, r"has the patches \[\], sides.audio.init_from needs"),
        ({"audio": {}}, {"init_from": str(music)}, r"LoRA has r=4, lora.r is 2"),
        ({"audio": {}}, {"init_from": str(music), "r": 4}, "LoRA has alpha=6, lora.alpha is 4"),
        ({"audio": {}}, {"init_from": str(folders["patch_only"])}, "has no LoRA to start from"),
        ({"audio": {"init_from": str(both / "none")}}, {}, "no pave.yaml in it"),
    ):
        with pytest.raises(UserError, match=message):
            build.create(side_config(tiny_setup, sides, **settings))
    config = side_config(tiny_setup, {"audio": {"init_from": str(both)}})
    elsewhere = dataclasses.replace(config, base=dataclasses.replace(config.base, newline="frame"))
    with pytest.raises(UserError, match=r"base.newline is 'grid', this model's is 'frame'"):
        build.create(elsewhere)
