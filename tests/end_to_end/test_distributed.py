"""Two processes on a CPU: losses, log and weights of one with twice the batch, exact resume, and a lost rank."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
from helpers import fault_injection
from helpers.distributed_runs import NO_DEEPSPEED, make_joint_run, make_run, train_in_one_process
from helpers.media_files import write_clip
from helpers.paths import ROOT
from helpers.random_checkpoints import save_trained
from helpers.report_runs import SPEED, Checker, records
from helpers.tiny_bases import make_internvl, make_port, make_ppllava, make_qwen, make_qwen3
from helpers.tiny_model import TinySetup, make_base
from helpers.training_runs import losses
from safetensors.torch import load_file

from pave import config
from pave.checkpoints import build
from pave.config import BaseConfig, Config, LoraConfig
from pave.models import trainable
from pave.models.patched_model import PatchedModel
from pave.training import recipe, resume, train
from pave.types import UserError

WRAPPED = {
    "llava_onevision": (make_base, ["Qwen2DecoderLayer", "SiglipEncoderLayer"]),
    "video_llava": (make_port, ["LlamaDecoderLayer", "CLIPEncoderLayer"]),
    "ppllava": (make_ppllava, ["LlamaDecoderLayer"]),
    "qwen2_5_vl": (make_qwen, ["Qwen2_5_VLDecoderLayer", "Qwen2_5_VLVisionBlock"]),
    "qwen3_vl": (make_qwen3, ["Qwen3VLTextDecoderLayer", "Qwen3VLVisionBlock"]),
    "internvl": (make_internvl, ["Qwen2DecoderLayer", "InternVLVisionLayer"]),
}
"""Classes of the layers that fill the memory."""
FILES = ("patch.safetensors", "adapter_model.safetensors")
SLOW = pytest.mark.slow


def make_base_run(tiny_setup: TinySetup, folder: Path) -> Config:
    """Tower, projector and LLM learn, as in the recipes of whole systems."""
    run = make_run(tiny_setup)
    base = dataclasses.replace(run.base, trainable=["tower", "projector", "llm"])
    return dataclasses.replace(run, base=base, lora=LoraConfig(r=0))


def make_uneven_run(tiny_setup: TinySetup, folder: Path) -> Config:
    """Some videos are short and have fewer frames, so that one rank may hold two of a size, the other two sizes."""
    root = shutil.copytree(tiny_setup.data, folder / "uneven")
    for name in ("train_00000", "train_00003"):
        write_clip(root / f"videos/{name}.mp4", frames=50, size=(64, 64))
    run = make_run(tiny_setup)
    base = dataclasses.replace(run.base, frames=6, fps=1.0)
    return dataclasses.replace(run, base=base, data=dataclasses.replace(run.data, root=str(root)))


def trained_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Everything that a run has learnt: patch, LoRA, parts of the base."""
    files = sorted(file for file in folder.iterdir() if file.name in (*FILES, trainable.BASE_FILE))
    assert len(files) == 2
    return {f"{file.name} {name}": x for file in files for name, x in load_file(file).items()}


def check_equal(one: Path, two: Path) -> None:
    """Losses to 1e-5, and the trained weights."""
    assert losses(two) == pytest.approx(losses(one), abs=1e-5)
    expected, actual = trained_weights(one / "final"), trained_weights(two / "final")
    assert expected.keys() == actual.keys()
    assert max((expected[name] - actual[name]).abs().max().item() for name in expected) < 1e-5


def check_same_log(one: Path, two: Path) -> None:
    """Two processes log the numbers of one, but those of the clock, and write a report."""
    for expected, actual in zip(records(one), records(two), strict=True):
        assert set(expected) == set(actual)
        for name in set(expected) - SPEED:
            assert actual[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-6), (name, expected["step"])
        samples = [record["samples_per_second"] * record["seconds"] for record in (expected, actual)]
        assert samples[0] == pytest.approx(samples[1])
    names = {name for record in records(two) for name in record}
    assert {"patch/audio/relative_magnitude", "patch/echo/update_norm", "lora/grad_norm"} <= names
    assert json.loads((two / "run.json").read_text())["hardware"].startswith("2 process(es) on a CPU")
    Checker((two / "report.html").read_text())


def check_resumed(out: Path) -> None:
    """The two runs of fault_injection.run_interrupted are the same, bit by bit."""
    assert losses(out / "stopped") == losses(out / "whole")
    expected, actual = trained_weights(out / "whole/final"), trained_weights(out / "stopped/final")
    assert all(torch.equal(expected[name], actual[name]) for name in expected)


def test_two_processes(tiny_setup: TinySetup, tmp_path: Path) -> None:
    single, joint = make_run(tiny_setup), make_joint_run(tiny_setup, tmp_path)
    single_file, joint_file = tmp_path / "single.yaml", tmp_path / "joint.yaml"
    single_file.write_text(config.dump(single))
    joint_file.write_text(config.dump(joint))
    process = fault_injection.launch(
        ["interrupted", str(single_file), f"{tmp_path}/dropout", "lora.dropout=0.1"],
        ["interrupted", str(joint_file), f"{tmp_path}/joint"],
        launcher=fault_injection.ACCELERATE,
    )
    assert process.returncode == 0, process.stderr
    one = train_in_one_process(joint, tmp_path / "one")
    check_equal(one, tmp_path / "joint/whole")
    check_same_log(one, tmp_path / "joint/whole")
    check_resumed(tmp_path / "dropout")
    check_resumed(tmp_path / "joint")
    names = {file.name for file in (tmp_path / "joint/whole/checkpoint-4").iterdir()}
    assert names >= {"rng_state_0.pth", "rng_state_1.pth", "trainer_state.json", "optimizer.pt", *FILES}


def test_a_dead_rank_ends_the_run_with_a_message(tiny_setup: TinySetup, tmp_path: Path) -> None:
    """Otherwise `launch` would time out: the other rank waits twice as long."""
    (tmp_path / "run.yaml").write_text(config.dump(make_run(tiny_setup)))
    run = ["dead", f"{tmp_path}/run.yaml", f"{tmp_path}/out"]
    process = fault_injection.launch(run, launcher=fault_injection.TORCHRUN)
    assert process.returncode != 0
    assert "rank      : 1" in process.stderr
    assert "SIGKILL" in process.stderr
    assert resume.newest_checkpoint(tmp_path / "out").name == "checkpoint-2"


@pytest.mark.parametrize(
    "make", [make_joint_run, make_uneven_run, pytest.param(make_base_run, marks=SLOW)], ids=["joint", "uneven", "base"]
)
def test_fsdp2(tiny_setup: TinySetup, tmp_path: Path, make: Callable[[TinySetup, Path], Config]) -> None:
    options = ["train.fsdp=true", f"train.fsdp_config={ROOT}/configs/distributed/fsdp2.json"]
    check_sharded(make(tiny_setup, tmp_path), options, tmp_path)
    assert (tmp_path / "run/whole/checkpoint-4/pytorch_model_fsdp.bin").exists()
    if make is make_joint_run:
        check_same_log(tmp_path / "one", tmp_path / "run/whole")


@NO_DEEPSPEED
@SLOW
@pytest.mark.parametrize(
    ("stage", "make"),
    # ZeRO-2 shards neither parameters nor the work on a batch: a base or videos of other sizes change nothing there.
    [(2, make_joint_run), (3, make_joint_run), (3, make_base_run), (3, make_uneven_run)],
    ids=["2-joint", "3-joint", "3-base", "3-uneven"],
)
def test_zero(tiny_setup: TinySetup, tmp_path: Path, stage: int, make: Callable[[TinySetup, Path], Config]) -> None:
    run = make(tiny_setup, tmp_path)
    # ZeRO-3 loads the base in another way, which leaves other random numbers for a fresh patch.
    source = str(save_trained(run, tmp_path / "source", 0))
    sides = {name: dataclasses.replace(side, init_from=source) for name, side in run.sides.items()}
    lora = dataclasses.replace(run.lora, init_from=source if run.lora.r else "")
    options = [f"train.deepspeed={ROOT}/configs/distributed/zero{stage}.json"]
    check_sharded(dataclasses.replace(run, sides=sides, lora=lora), options, tmp_path)

    shards = {file.name for file in (tmp_path / "run/whole/checkpoint-4/global_step4").iterdir()}
    expected = {f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in (0, 1)}
    assert {name for name in shards if "optim_states" in name} == expected
    for record in records(tmp_path / "run/whole"):
        assert {"grad_norm", "patch/audio/learning_rate", *SPEED} <= set(record)
        # ZeRO's gradients and updates are shards, inside the backward pass.
        assert not any(name.endswith(("/grad_norm", "/update_norm")) for name in record)
        if run.lora.r:
            assert record["patch/audio/learning_rate"] >= record["lora/learning_rate"]


def check_sharded(run: Config, options: list[str], out: Path) -> None:
    """Two ranks that share parameters do a run as one process does, and resume it bit by bit."""
    (out / "run.yaml").write_text(config.dump(run))
    arguments = ["interrupted", f"{out}/run.yaml", f"{out}/run", *options]
    process = fault_injection.launch(arguments, launcher=fault_injection.TORCHRUN)
    assert process.returncode == 0, process.stderr
    check_equal(train_in_one_process(run, out / "one"), out / "run/whole")
    check_resumed(out / "run")


@pytest.mark.parametrize("name", WRAPPED)
def test_fsdp2_gathers_the_layers_of_every_base_one_by_one(name: str, tmp_path: Path) -> None:
    make, layers = WRAPPED[name]
    newline: Literal["grid", "no_token"] = "grid" if name == "llava_onevision" else "no_token"
    base = build.load_base(BaseConfig(name, str(make(tmp_path)), newline=newline), weights=False)
    model = PatchedModel(base, {})
    assert {*layers} <= {*model._no_split_modules} <= {type(part).__name__ for part in model.modules()}


@pytest.mark.parametrize(
    ("quantize", "option", "message"),
    [
        ("none", {"fsdp": True}, r"train\.fsdp: needs torchrun"),
        ("none", {"deepspeed": "zero2.json"}, r"train\.deepspeed: needs torchrun"),
        ("int8", {"fsdp": True}, r"base\.quantize=int8: FSDP2 cannot .* use nf4"),
        ("int8", {}, r"base\.quantize=int8: the package bitsandbytes is not installed; pip install bitsandbytes, or"),
    ],
)
def test_impossible_settings(
    tiny_setup: TinySetup, tmp_path: Path, quantize: str, option: dict, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tiny_setup)
    base = dataclasses.replace(run.base, quantize=quantize)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=message):
        train.main(dataclasses.replace(run, base=base, train={**run.train, **option}), tmp_path)


@pytest.mark.parametrize("missing", ["error", "absent"])
def test_ranks_are_ready_for_a_side_channel_that_only_some_have(
    tiny_setup: TinySetup, tmp_path: Path, missing: Literal["error", "absent"]
) -> None:
    run = make_run(tiny_setup)
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, missing=missing))
    assert recipe.training_arguments(run, tmp_path).ddp_find_unused_parameters == (missing == "absent")
