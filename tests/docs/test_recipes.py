"""The published recipes: configs hold the published numbers, count as many parameters, and are what the scripts run.

What they do with data is in tests/end_to_end/test_recipe_runs.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers.paths import ROOT
from helpers.recipes import RECIPES, SINGLE, commands, file_of, header, variants

from pave import config
from pave.checkpoints import build
from pave.cli import main
from pave.config import Config
from pave.training import recipe, train

BASE = "lmms-lab/llava-onevision-qwen2-{}-ov"
LORA = {"0.5b": 35_192_832, "7b": 161_480_704}
# v stands in every checkpoint and is never used: 512 * 512 + 512 of each layer.
UNUSED = 262_656


FOLDERS = {("avsd", "audio"): "Charades_*_audio_imagebind_feat", ("llava_video", "dense"): "languagebind_feat"}
"""Of features, where the published names are known."""
OFFICIAL_DIMS = {"audio": 1024, "dense": 1024, "scene3d": 1024, "exo": 1152}


def on_7b(name: str) -> Config:
    """With the overrides that the header gives for 7B."""
    return config.load(file_of(name), variants(name)[2])


@pytest.mark.parametrize("name", RECIPES)
def test_the_numbers_are_the_published_ones(name: str, tmp_path: Path) -> None:
    expected, resolved = RECIPES[name], config.load(file_of(name))
    assert (resolved.data.task, resolved.data.eval_split) == (expected.task, expected.split)
    assert resolved.data.labels == "official"
    assert (resolved.base.frames, resolved.base.newline, resolved.base.dtype) == (32, "grid", "bfloat16")
    assert (resolved.lora.r, resolved.lora.alpha, resolved.lora.dropout) == (64, 16, 0.05)
    assert resolved.patch_lr is None
    assert tuple(resolved.sides) == expected.sides
    for side, patch in resolved.sides.items():
        assert patch.side_dim == OFFICIAL_DIMS[side]
        assert (patch.hidden_dim, patch.side_hidden_dim, patch.heads, patch.num_layers) == (512, 512, 4, expected.depth)
        assert patch.rope == expected.rope
        assert (patch.conv_blocks, patch.queries, patch.value_projection, patch.neighborhood) == (
            [],
            [],
            "shared",
            "chunks",
        )
        assert patch.features == FOLDERS.get((expected.task, side), f"features/{side}")
    arguments = recipe.training_arguments(resolved, tmp_path)
    assert arguments.per_device_train_batch_size == expected.batch
    assert arguments.gradient_accumulation_steps == expected.accumulation
    assert (arguments.num_train_epochs, arguments.max_steps) == (expected.epochs, -1)
    assert (arguments.learning_rate, arguments.lr_scheduler_type, arguments.warmup_steps) == (2e-5, "cosine", 0.03)
    assert (arguments.weight_decay, arguments.max_grad_norm, arguments.seed) == (0, 0.1, 42)
    assert (arguments.save_steps, arguments.gradient_checkpointing) == (2000, True)
    assert arguments.optim.startswith("adamw")


@pytest.mark.parametrize(("name", "size"), [(name, size) for name, recipe in RECIPES.items() for size in recipe.patch])
def test_it_trains_as_many_parameters_as_published(name: str, size: str) -> None:
    """`v` of each layer is in the published count, frozen here."""
    recipe = RECIPES[name]
    resolved = config.load(file_of(name)) if resolved_size(name) == size else on_7b(name)
    assert resolved.base.path == BASE.format(size)
    model = build.create(resolved, weights=False)
    counts = dict.fromkeys(("LoRA", *recipe.sides), (0, 0))
    for parameter_name, parameter in model.named_parameters():
        part = train.part_of(parameter_name).removeprefix("patch ")
        n, trained = parameter.numel(), parameter.numel() * parameter.requires_grad
        assert part in counts or not trained, parameter_name
        if part in counts:
            counts[part] = (counts[part][0] + n, counts[part][1] + trained)
    assert counts.pop("LoRA") == (LORA[size], LORA[size])
    for side, (total, trained) in counts.items():
        assert total == recipe.patch[size]
        assert trained == (total - UNUSED * recipe.depth if resolved.sides[side].trainable else 0)


def resolved_size(name: str) -> str:
    return next(iter(RECIPES[name].patch))


def test_only_the_small_video_patch_has_rope_on() -> None:
    assert [name for name in RECIPES if any(side.rope for side in config.load(file_of(name)).sides.values())] == [
        "enhanced_video"
    ]
    assert not any(side.rope for name in SINGLE for side in on_7b(name).sides.values())


def test_the_second_patch_starts_from_the_first_recipe() -> None:
    """One folder gives the dense patch, which stays, and the LoRA, which trains further."""
    resolved = config.load(file_of("multiple_side_channels"), ["lora.init_from=somewhere"])
    dense, audio = resolved.sides["dense"], resolved.sides["audio"]
    assert (dense.init_from, resolved.lora.init_from) == ("somewhere", "somewhere")
    assert (dense.trainable, audio.trainable, resolved.lora.trainable, audio.init_from) == (False, True, True, "")
    trained = on_7b("enhanced_video").sides["dense"]
    assert dataclasses.replace(dense, init_from="", trainable=True, features=trained.features) == trained


@pytest.mark.parametrize("name", RECIPES)
def test_show_needs_no_weights(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["show", str(file_of(name))]) == 0
    shown = capsys.readouterr().out
    for side in RECIPES[name].sides:
        assert f"patch {side}" in shown
    assert f"{LORA[resolved_size(name)]:,}" in shown


@pytest.mark.parametrize("name", RECIPES)
def test_the_header_says_what_there_is_to_know(name: str) -> None:
    """Commands that parse, overrides that resolve, the published numbers, the hardware, the script."""
    text = " ".join(header(name))
    assert "Hardware:" in text
    for number in RECIPES[name].published:
        assert re.search(rf"(?<![\d.]){re.escape(number)}(?![\d])", text), number
    steps = RECIPES[name].batch * RECIPES[name].accumulation * 8
    assert f"{steps} samples a step" in text
    assert commands(name, "bash ")[0][:4] == ["bash", f"scripts/{name}_train.sh", "DATA", "OUT"]
    for words in [*commands(name, "bash "), *commands(name, "... ")]:
        config.load(file_of(name), [word for word in words if "=" in word])
    for words in commands(name, "pave "):
        arguments = main.parse_arguments(words[1:])
        assert str(arguments.ckpt) == f"configs/{name}.yaml"
        config.load(file_of(name), arguments.overrides)


@pytest.mark.parametrize("name", SINGLE)
def test_what_the_paper_compares_with_is_one_override(name: str) -> None:
    """Video alone has LoRA and no patch; learnable queries replace the map of the video's own."""
    (side,) = RECIPES[name].sides
    alone, queries, _ = (config.load(file_of(name), words) for words in variants(name))
    model = build.create(alone, weights=False)
    assert not model.patches
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == LORA["0.5b"]
    patch = build.create(queries, weights=False).patches[side]
    assert patch.queries.shape == (32, 196, 512)
    assert patch.query_in is None


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The scripts beside a `torchrun` that only writes down how it is called."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    (tmp_path / "scripts/setup.sh").write_text("")
    (tmp_path / ".venv/bin").mkdir(parents=True)
    stub = tmp_path / ".venv/bin/torchrun"
    stub.write_text('#!/bin/sh\necho "$*" >>calls\n')
    stub.chmod(0o755)
    return tmp_path


def run_script(checkout: Path, script: str, *words: str) -> list[argparse.Namespace]:
    """The arguments of the `pave` commands that a script runs, on three processes."""
    environment = {**os.environ, "PROCESSES": "3"}
    assert os.access(ROOT / "scripts" / script, os.X_OK)
    subprocess.run(["bash", checkout / "scripts" / script, *words], cwd="/", env=environment, check=True)
    calls = [line.split(" -m pave ") for line in (checkout / "calls").read_text().splitlines()]
    assert {launcher for launcher, _ in calls} == {"--standalone --nproc-per-node 3"}
    return [main.parse_arguments(command.split()) for _, command in calls]


@pytest.mark.parametrize("name", RECIPES)
def test_the_train_script_trains_its_config(name: str, checkout: Path) -> None:
    (call,) = run_script(checkout, f"{name}_train.sh", "DATA", "OUT", "train.seed=1", "--resume")
    assert (str(call.config), str(call.out), call.resume) == (f"configs/{name}.yaml", "OUT", True)
    resolved = config.load(ROOT / call.config, call.overrides)
    assert (resolved.data.root, resolved.train["seed"]) == ("DATA", 1)
    assert (ROOT / resolved.train["deepspeed"]).is_file()


@pytest.mark.parametrize("name", RECIPES)
def test_the_eval_script_scores_a_checkpoint(name: str, checkout: Path) -> None:
    data = "DATA"
    if name == "enhanced_video":
        (checkout / "bench/mlvu").mkdir(parents=True)
        data = "bench"
    (call,) = run_script(checkout, f"{name}_eval.sh", data, "CKPT.zip", "base.frames=8")
    assert (str(call.ckpt), str(call.recipe)) == ("CKPT.zip", f"configs/{name}.yaml")
    resolved = config.load(ROOT / call.recipe, call.overrides)
    assert (resolved.base.dtype, resolved.base.frames) == ("float16", 8)
    if name == "enhanced_video":
        assert (resolved.data.task, resolved.data.eval_split, resolved.data.root) == ("mlvu", "dev", "bench/mlvu")
        assert (str(call.out), call.max_new_tokens) == ("CKPT_eval/mlvu", 16)
    else:
        assert (resolved.data.task, resolved.data.eval_split, resolved.data.root) == (*RECIPES[name][:2], "DATA")
        assert (str(call.out), call.max_new_tokens) == ("CKPT_eval", 1024)


def test_scripts_say_what_is_missing(checkout: Path) -> None:
    for script, message in {
        "avsd_train.sh": "folder for the checkpoints",
        "avsd_eval.sh": "folder or zip of a checkpoint",
    }.items():
        command = ["bash", checkout / "scripts" / script, "DATA"]
        failed = subprocess.run(command, capture_output=True, text=True, check=False)
        assert failed.returncode != 0
        assert message in failed.stderr


def test_every_recipe_has_its_scripts_and_no_script_is_left_over() -> None:
    expected = {f"{name}_{step}.sh" for name in RECIPES for step in ("train", "eval")}
    assert {file.name for file in (ROOT / "scripts").glob("*_*.sh")} == expected
    assert all(file_of(name).is_file() for name in RECIPES)
