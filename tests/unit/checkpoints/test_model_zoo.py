"""The table of official checkpoints: the published facts, and commands that are ours."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from helpers.paths import ROOT

from pave import config
from pave.checkpoints import model_zoo
from pave.cli import main
from pave.models.bases import _llava_onevision_layouts
from pave.types import UserError

CONFIGS = ROOT / "configs"


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]) -> dict[str, list[str]]:
    """Name -> lines of `pave list checkpoints`."""
    assert main.main(["list", "checkpoints"]) == 0
    blocks = [block.splitlines() for block in capsys.readouterr().out.strip().split("\n\n")]
    return {name: [line.strip() for line in lines] for name, *lines in blocks}


def test_all_fifteen_are_shown_with_the_facts(shown: dict[str, list[str]]) -> None:
    assert list(shown) == [checkpoint.name for checkpoint in model_zoo.CHECKPOINTS]
    assert len(shown) == 15
    assert shown["pave_v5_1_3_lora_music_avqa7B_2epoch_imagebind_3layers"][:3] == [
        "task: music_avqa; side-channel: audio; base: lmms-lab/llava-onevision-qwen2-7b-ov",
        "patch: 3 layers, no rope; trained: 2 epochs, batch 4 x accumulation 4",
        "published: music_avqa accuracy Audio 79.7, accuracy Visual 93.0, accuracy Audio-Visual 78.0, accuracy 82.3",
    ]
    assert "side-channel: dense + audio" in shown["pave_v5_1_3_lora_avsd_audio_and_dense_7B"][0]
    assert "published: avsd CIDEr 160.0" in shown["pave_v5_1_3_lora_avsd_audio_and_dense_7B"]
    assert [name for name, lines in shown.items() if "3D rope" in lines[1]] == ["pave_v5_1_2_lora"]


def test_every_command_is_ours(shown: dict[str, list[str]]) -> None:
    for name, (_, _, published, *lines) in shown.items():
        checkpoint = model_zoo.find_checkpoint(name)
        fetch, *scores, demo = (main.parse_arguments(shlex.split(line)[1:]) for line in lines)
        assert fetch.name == name
        ckpt = model_zoo.default_folder(name)
        assert [Path(line.split()[3]) for line in lines[1:]] == [ckpt] * len(lines[1:])
        for arguments in (*scores, demo):
            settings = config.from_overrides(arguments.overrides)
            assert arguments.ckpt == ckpt
            assert arguments.base in _llava_onevision_layouts.PUBLISHED
            assert tuple(settings.sides) == checkpoint.recipe.sides
            assert all(side.rope == checkpoint.rope for side in settings.sides.values())
        tasks = [config.from_overrides(arguments.overrides).data.task for arguments in scores]
        assert tasks == list(checkpoint.published)
        assert all(f"{task} " in published for task in tasks)
        encoded = [side for side, patch in config.from_overrides(demo.overrides).sides.items() if patch.encoder]
        assert {*encoded, *(text.split("=")[0] for text in demo.features)} == set(checkpoint.recipe.sides)


def test_the_table_agrees_with_the_shipped_configs() -> None:
    """Task, sides, depth, epochs, batch, split, and the numbers in the configs' headers."""
    recipes = {checkpoint.recipe for checkpoint in model_zoo.CHECKPOINTS}
    configs = {}
    for file in CONFIGS.glob("*.yaml"):
        resolved = config.load(file)
        if resolved.data.task in {recipe.task for recipe in recipes}:
            configs[resolved.data.task, tuple(resolved.sides)] = (resolved, re.findall(r"\d+\.\d", file.read_text()))
    for recipe in recipes:
        resolved, numbers = configs.pop((recipe.task, recipe.sides))
        assert {patch.num_layers for patch in resolved.sides.values()} == {recipe.num_layers}
        assert resolved.train["num_train_epochs"] == recipe.epochs
        assert resolved.train["per_device_train_batch_size"] == recipe.batch_size
        assert resolved.train["gradient_accumulation_steps"] == recipe.accumulation_steps
        assert resolved.data.eval_split == model_zoo.SPLITS.get(recipe.task, "test")
        published = [r.published.values() for r in model_zoo.CHECKPOINTS if r.recipe == recipe]
        assert {str(x) for values in published for row in values for x in row} <= set(numbers)
    assert not configs


def test_a_misspelt_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'pave_v5_1_3_lora_7B'"):
        model_zoo.find_checkpoint("pave_v5_1_3_lora_7")
