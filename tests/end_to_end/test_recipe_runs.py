"""The published recipes on tiny data in the published layouts: they learn and answer, and a kill costs nothing."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from helpers import fault_injection, official_layouts
from helpers.paths import ROOT
from helpers.recipes import RECIPES, SINGLE, commands, file_of, variants
from helpers.tiny_model import make_base
from helpers.training_runs import losses
from safetensors.torch import load_file

from pave import config
from pave.checkpoints import build
from pave.cli import main
from pave.data.dataset import QuestionDataset
from pave.models.bases import _llava_onevision_layouts
from pave.training import resume, train
from pave.training.tiny_models.llava_onevision import make_tokenizer
from pave.types import UserError

TRAIN = {
    "deepspeed": "null",
    "max_steps": 2,
    "save_steps": 1,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-2,
    "warmup_steps": 0,
    "logging_steps": 1,
    "dataloader_num_workers": 0,
    "report_to": "none",
    "disable_tqdm": "true",
}
PATCH = {"hidden_dim": 128, "heads": 1, "side_hidden_dim": 16}
"""Rope needs heads of 128."""


class Seen(NamedTuple):
    """What a recipe makes of its fixture."""

    learnt: int
    asked: int
    sides: dict[str, tuple[int, ...]]
    """Tokens of the first question to answer; in enhanced_video, which has none, to learn."""
    prompt: str


SOUND, FRAMES, ROOM = {"audio": (5, 1, 1024)}, {"dense": (16, 4, 1024)}, {"scene3d": (32, 576, 1024)}
SEEN = {
    "avsd": Seen(4, 3, SOUND, "is it red ?"),
    "avqa": Seen(4, 3, SOUND, "What sounds 0?\nA.kettle\nB.drum\nC.train\nD.dog\nAnswer"),
    # What is heard is learnt twice.
    "music_avqa": Seen(5, 3, SOUND, "Where is the first violin?"),
    "scanqa": Seen(4, 3, ROOM, "What stands beside chair 0?"),
    "sqa3d": Seen(4, 3, ROOM, "I am sitting on the bed. Which side is door 0 on?"),
    "egoexo4d_dp_data": Seen(4, 3, {"exo": (64, 196, 1152)}, "In this video, a human is performing an activity."),
    # Two questions of each of four videos.
    "enhanced_video": Seen(8, 0, FRAMES, "What is shown?"),
    "multiple_side_channels": Seen(4, 3, {**FRAMES, **SOUND}, "is it red ?"),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("recipes") / "base")


@pytest.fixture(scope="module")
def dense(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What enhanced_video on 7B leaves for multiple_side_channels."""
    folder = tmp_path_factory.mktemp("dense")
    data = official_layouts.make("enhanced_video", folder / "data")
    words = [*overrides("enhanced_video", base, None), f"data.root={data}", "sides.dense.rope=false"]
    train.main(config.load(file_of("enhanced_video"), [*words, "train.max_steps=1"]), folder / "out")
    return folder / "out/final"


def overrides(name: str, base: Path, dense: Path | None) -> list[str]:
    """What makes a recipe small, as a user could write it; the batches, the clock and the paths of this test."""
    sides = config.load(file_of(name)).sides
    return [
        f"base.path={base}",
        "lora.r=4",
        *(f"train.{key}={value}" for key, value in TRAIN.items()),
        *(f"sides.{side}.{key}={value}" for side in sides for key, value in PATCH.items()),
        *([f"lora.init_from={dense}"] if name == "multiple_side_channels" else []),
    ]


def answers(folder: Path, tokens: int) -> list[str]:
    """As the scripts evaluate."""
    words = ["eval", "--ckpt", f"{folder}/final", "--out", f"{folder}/eval", "--workers", "0"]
    assert main.main([*words, "--max-new-tokens", str(tokens), "base.dtype=float16"]) == 0
    return said(folder / "eval")


def said(folder: Path) -> list[str]:
    return [json.loads(line)["text"] for line in (folder / "predictions.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", RECIPES)
def test_it_learns_and_answers(name: str, base: Path, dense: Path, tmp_path: Path) -> None:
    seen, data = SEEN[name], official_layouts.make(name, tmp_path / "data")
    run = config.load(file_of(name), [*overrides(name, base, dense), f"data.root={data}", "train.max_steps=1"])
    train.main(run, tmp_path)
    model, _ = build.load(tmp_path / "final")
    learnt = QuestionDataset(run, model.base, "train", with_answers=True)
    assert len(learnt) == seen.learnt
    if seen.asked:
        asked = QuestionDataset(run, model.base, run.data.eval_split, with_answers=False)
        assert len(answers(tmp_path, 2)) == seen.asked == len(asked)
        assert json.loads((tmp_path / "eval/metrics.json").read_text())["metrics"]["missing"] == 0
    else:
        asked = learnt
    sample = asked[0]
    assert {side: tuple(tokens.x.shape) for side, tokens in sample.sides.items() if tokens} == seen.sides
    assert sample.pixels is not None
    assert sample.pixels.shape == (32, 3, 32, 32)
    assert seen.prompt in asked.task.prompt(asked.questions[0])
    for side, patch in model.patches.items():
        assert patch.out_norm.weight.abs().max() > 0, side


@pytest.mark.parametrize("name", SINGLE)
def test_video_alone_needs_no_feature_files(name: str, base: Path, tmp_path: Path) -> None:
    """The base as it is, and LoRA alone, by the overrides of the header."""
    data = official_layouts.make(name, tmp_path / "data")
    for folder in [data / "features", *data.glob("*_feat")]:
        shutil.rmtree(folder, ignore_errors=True)
    small = [*overrides(name, base, None), f"data.root={data}"]
    with pytest.raises(UserError, match=f"no such {next(iter(SEEN[name].sides))} features file"):
        train.main(config.load(file_of(name), small), tmp_path)
    alone = variants(name)[0]
    train.main(config.load(file_of(name), [*small, *alone, "train.max_steps=1"]), tmp_path)
    lora = load_file(tmp_path / "final/adapter_model.safetensors")
    assert all(x.abs().max() > 0 for key, x in lora.items() if "lora_B" in key)
    assert not load_file(tmp_path / "final/patch.safetensors")
    if SEEN[name].asked:
        assert len(answers(tmp_path, 2)) == SEEN[name].asked
        (zero_shot,) = commands(name, "pave eval")
        paths = {
            "data.root=DATA": f"data.root={data}",
            "OUT": f"{tmp_path}/zero",
            f"configs/{name}.yaml": file_of(name),
        }
        words = [str(paths.get(word, word)) for word in zero_shot[1:]]
        assert main.main([*words, "--max-new-tokens", "2", "--workers", "0", f"base.path={base}"]) == 0
        assert (tmp_path / "zero/metrics.json").is_file()


@pytest.mark.parametrize("name", ["avsd", "enhanced_video"])
def test_learnable_queries_on_the_published_number_of_tokens(name: str, tmp_path: Path) -> None:
    """Without rope and with it: 196 of them for each of 32 frames, as the header writes it."""
    data, base = official_layouts.make(name, tmp_path / "data"), make_fine_base(tmp_path / "base")
    words = [*overrides(name, base, None), f"data.root={data}", *variants(name)[1], "train.max_steps=1"]
    words += ["train.gradient_accumulation_steps=1"]
    train.main(config.load(file_of(name), words), tmp_path)
    (side,) = SEEN[name].sides
    patch = load_file(tmp_path / "final/patch.safetensors")
    assert patch[f"{side}.queries"].shape == (32, 196, 128)
    assert patch[f"{side}.out_norm.weight"].abs().max() > 0


def make_fine_base(folder: Path) -> Path:
    """A random LLaVA-OneVision of one layer each with the tower's published grid, 27 by 27 for 384 pixels."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer(["a"])
    text = {
        **{"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "tie_word_embeddings": True},
        **{"num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": len(tokenizer)},
    }
    vision = {
        **{"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1},
        **{"image_size": 384, "patch_size": 14},
    }
    _llava_onevision_layouts.save(
        _llava_onevision_layouts.build_model(text, vision), tokenizer, text, vision, folder, torch.float32
    )
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["avsd", "multiple_side_channels"])
def test_killed_in_the_middle_of_a_save(name: str, base: Path, dense: Path, tmp_path: Path) -> None:
    """By its scripts: started, killed, resumed, evaluated; and as `pave train` and `pave eval` in one go."""
    data = official_layouts.make(name, tmp_path / "data")
    small, out = overrides(name, base, dense), tmp_path / "out"
    undisturbed = config.load(file_of(name), [*small, f"data.root={data}"])
    train.main(undisturbed, tmp_path / "undisturbed")

    kill_in_save(start(f"{name}_train.sh", data, out, small), out / "checkpoint-2/optimizer.pt")
    assert Path(resume.newest_checkpoint(out)).name == "checkpoint-1"
    assert not (out / "final").exists()
    assert start(f"{name}_train.sh", data, out, [*small, "--resume"]).wait(timeout=300) == 0, printed(out)

    assert losses(out) == losses(tmp_path / "undisturbed")
    assert len(losses(out)) == 2
    for file in ("patch.safetensors", "adapter_model.safetensors"):
        expected, actual = load_file(tmp_path / "undisturbed/final" / file), load_file(out / "final" / file)
        assert expected.keys() == actual.keys()
        assert all(torch.equal(expected[key], actual[key]) for key in expected)

    assert start(f"{name}_eval.sh", data, out / "final", ["--workers", "0"]).wait(timeout=300) == 0
    assert said(out / "final_eval") == answers(tmp_path / "undisturbed", 1024)
    assert re.search(r"^(accuracy|CIDEr|EM) .*\d", printed(out / "final"), re.MULTILINE)


def start(script: str, data: Path, out: Path, words: list[str]) -> subprocess.Popen[bytes]:
    """A script of a recipe in one process; what it prints goes into a file beside OUT."""
    with out.with_suffix(".txt").open("ab") as log:
        return subprocess.Popen(
            ["bash", ROOT / "scripts" / script, data, out, *words],
            stdout=log,
            stderr=log,
            env={**os.environ, **fault_injection.OPTIONS, "PROCESSES": "1"},
        )


def printed(out: Path) -> str:
    return out.with_suffix(".txt").read_text()


def kill_in_save(script: subprocess.Popen[bytes], file: Path) -> None:
    """Let a run write `file` into a pipe, and kill it and all it started when the pipe is full; leaves half a file."""
    file.parent.mkdir(parents=True)
    os.mkfifo(file)
    pipe = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    while not select.select([pipe], [], [], 1)[0]:
        assert script.poll() is None, "the run ended by itself"
    for process in list(family(script.pid)):
        os.kill(process, signal.SIGKILL)
    script.wait()
    half = os.read(pipe, 2000)
    os.close(pipe)
    file.unlink()
    file.write_bytes(half)


def family(process: int) -> Iterator[int]:
    """A process, its children, theirs, ..."""
    yield process
    for child in Path(f"/proc/{process}/task/{process}/children").read_text().split():
        yield from family(int(child))
