"""Two processes on a CPU: the same losses as one with twice the batch, exact resume, and what a lost rank does."""

from __future__ import annotations

import dataclasses
import shutil
import time
from pathlib import Path
from typing import Literal

import pytest
import torch
from helpers import fault_injection
from helpers.distributed_runs import NO_DEEPSPEED, alone, make_joint_run, make_run
from helpers.media_files import write_clip
from helpers.paths import ROOT
from helpers.tiny_bases import make_internvl, make_port, make_ppllava, make_qwen, make_qwen3
from helpers.tiny_model import TinySetup, make_base
from helpers.training_runs import losses
from safetensors.torch import load_file

from pave import config
from pave.checkpoints import build
from pave.config import BaseConfig, Config, LoraConfig
from pave.models import trainable
from pave.models.patched_model import Pave
from pave.training import train
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


def trained(folder: Path) -> dict[str, torch.Tensor]:
    """Everything that a run has learnt: patch, LoRA, parts of the base."""
    files = sorted(file for file in folder.iterdir() if file.name in (*FILES, trainable.FILE))
    assert len(files) == 2
    return {f"{file.name} {name}": x for file in files for name, x in load_file(file).items()}


def make_whole_run(tiny_setup: TinySetup) -> Config:
    """Tower, projector and LLM learn, as in the recipes of whole systems."""
    run = make_run(tiny_setup)
    return dataclasses.replace(
        run, base=dataclasses.replace(run.base, trainable=["tower", "projector", "llm"]), lora=LoraConfig(r=0)
    )


def make_uneven_run(tiny_setup: TinySetup, folder: Path) -> Config:
    """Some videos are short and have fewer frames, so that one rank may hold two of a size, the other two sizes."""
    root = shutil.copytree(tiny_setup.data, folder / "uneven")
    for name in ("train_00000", "train_00003"):
        write_clip(root / f"videos/{name}.mp4", frames=50, size=(64, 64))
    run = make_run(tiny_setup)
    return dataclasses.replace(
        run,
        base=dataclasses.replace(run.base, frames=6, fps=1.0),
        data=dataclasses.replace(run.data, root=str(root)),
    )


def run_of(kind: str, tiny_setup: TinySetup, folder: Path) -> Config:
    """One of the above."""
    if kind == "joint":
        return make_joint_run(tiny_setup, folder)
    if kind == "uneven":
        return make_uneven_run(tiny_setup, folder)
    return make_run(tiny_setup) if kind == "one" else make_whole_run(tiny_setup)


def check_equal(one: Path, two: Path) -> None:
    """Losses to 1e-5, and the trained weights."""
    assert losses(two) == pytest.approx(losses(one), abs=1e-5)
    a, b = trained(one / "final"), trained(two / "final")
    assert a.keys() == b.keys()
    assert max((a[name] - b[name]).abs().max().item() for name in a) < 1e-5


def check_resumed(out: Path) -> None:
    """What faults.interrupted leaves: bit by bit the same."""
    assert losses(out / "stopped") == losses(out / "whole")
    a, b = trained(out / "whole/final"), trained(out / "stopped/final")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_two_processes(tiny_setup: TinySetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, joint = make_run(tiny_setup), make_joint_run(tiny_setup, tmp_path)
    single, mixed = str(tmp_path / "run.yaml"), str(tmp_path / "joint.yaml")
    Path(single).write_text(config.dump(run))
    Path(mixed).write_text(config.dump(joint))
    done = fault_injection.launch(
        ["plain", single, f"{tmp_path}/two"],
        ["interrupted", single, f"{tmp_path}/resumed", "lora.dropout=0.1"],
        ["interrupted", mixed, f"{tmp_path}/mixed"],
        how=fault_injection.ACCELERATE,
    )
    assert done.returncode == 0, done.stderr
    check_equal(alone(run, tmp_path / "one", monkeypatch), tmp_path / "two")
    check_equal(alone(joint, tmp_path / "joint", monkeypatch), tmp_path / "mixed/whole")
    check_resumed(tmp_path / "resumed")
    check_resumed(tmp_path / "mixed")
    names = {f.name for f in (tmp_path / "two/checkpoint-4").iterdir()}
    assert names >= {"rng_state_0.pth", "rng_state_1.pth", "trainer_state.json", "optimizer.pt", *FILES}


def test_a_dead_rank_ends_the_run_with_a_message(tiny_setup: TinySetup, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(config.dump(make_run(tiny_setup)))
    start = time.monotonic()
    done = fault_injection.launch(["dead", f"{tmp_path}/run.yaml", f"{tmp_path}/out"], how=fault_injection.TORCHRUN)
    assert done.returncode != 0
    assert time.monotonic() - start < 60
    assert "rank      : 1" in done.stderr
    assert "SIGKILL" in done.stderr
    assert Path(train.newest_checkpoint(tmp_path / "out")).name == "checkpoint-2"


@pytest.mark.parametrize(
    "kind", ["joint", "uneven", *(pytest.param(name, marks=pytest.mark.slow) for name in ("one", "whole"))]
)
def test_fsdp2(tiny_setup: TinySetup, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["train.fsdp=true", f"train.fsdp_config={ROOT}/configs/fsdp2.json"]
    in_pieces(run_of(kind, tiny_setup, tmp_path), options, tmp_path, monkeypatch)
    assert (tmp_path / "run/whole/checkpoint-4/pytorch_model_fsdp.bin").exists()


@NO_DEEPSPEED
@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("kind", ["one", "joint", "whole", "uneven"])
def test_zero(tiny_setup: TinySetup, tmp_path: Path, kind: str, stage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    start = run_of(kind, tiny_setup, tmp_path)
    first = alone(start, tmp_path / "start", monkeypatch) / "final"
    # ZeRO-3 loads the base in another way, which leaves other random numbers for a fresh patch.
    sides = {side: dataclasses.replace(patch, init_from=str(first)) for side, patch in start.sides.items()}
    lora = dataclasses.replace(start.lora, init_from=str(first) if start.lora.r else "")
    options = [f"train.deepspeed={ROOT}/configs/distributed/zero{stage}.json"]
    in_pieces(dataclasses.replace(start, sides=sides, lora=lora), options, tmp_path, monkeypatch)
    pieces = {f.name for f in (tmp_path / "run/whole/checkpoint-4/global_step4").iterdir()}
    assert {name for name in pieces if "optim_states" in name} == {
        f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in (0, 1)
    }


@pytest.mark.parametrize("name", WRAPPED)
def test_fsdp2_gathers_the_layers_of_every_base_one_by_one(name: str, tmp_path: Path) -> None:
    make, layers = WRAPPED[name]
    newline: Literal["grid", "no_token"] = "grid" if name == "llava_onevision" else "no_token"
    model = Pave(build.load_base(BaseConfig(name, str(make(tmp_path)), newline=newline), weights=False), {})
    assert {*layers} <= {*model._no_split_modules} <= {type(part).__name__ for part in model.modules()}


def in_pieces(run: Config, options: list[str], out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks that share parameters do a run as one process does, and resume it bit by bit."""
    (out / "run.yaml").write_text(config.dump(run))
    done = fault_injection.launch(
        ["interrupted", f"{out}/run.yaml", f"{out}/run", *options], how=fault_injection.TORCHRUN
    )
    assert done.returncode == 0, done.stderr
    check_equal(alone(run, out / "alone", monkeypatch), out / "run/whole")
    check_resumed(out / "run")


@pytest.mark.parametrize(
    ("quantize", "option", "message"),
    [
        ("none", {"fsdp": True}, r"train\.fsdp: needs torchrun"),
        ("none", {"deepspeed": "zero2.json"}, r"train\.deepspeed: needs torchrun"),
        ("int8", {"fsdp": True}, r"base\.quantize=int8: FSDP2 cannot .* use nf4"),
        ("int8", {}, r"base\.quantize=int8: the package bitsandbytes is not installed; pip install bitsandbytes, or"),
    ],
)
def test_what_cannot_be(
    tiny_setup: TinySetup, tmp_path: Path, quantize: str, option: dict, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tiny_setup)
    base = dataclasses.replace(run.base, quantize=quantize)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=message):
        train.main(dataclasses.replace(run, base=base, train={**run.train, **option}), tmp_path)


def test_ranks_are_ready_for_a_side_channel_that_only_some_have(tiny_setup: TinySetup, tmp_path: Path) -> None:
    run = make_run(tiny_setup)
    gaps = dataclasses.replace(run, data=dataclasses.replace(run.data, missing="absent"))
    found = [train.training_arguments(one, tmp_path).ddp_find_unused_parameters for one in (run, gaps)]
    assert found == [False, True]
