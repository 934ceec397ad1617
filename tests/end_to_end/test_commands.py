"""Every command by hand, end to end on a tiny random base; and what a user sees when something is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from helpers.media_files import BUNNY, copy_picture
from helpers.paths import GOLDEN
from helpers.tiny_model import SIDE_DIM, TinySetup, make_config
from safetensors.torch import load_file

from pave import config
from pave.checkpoints import official
from pave.cli import main
from pave.cli.arguments import RENAMED_ARGUMENTS
from pave.media import feature_files
from pave.models.encoders import imagebind_audio
from pave.types import SideTokens

OFFICIAL = GOLDEN / "e2e/tiny_pave_v5_1_3_lora_trained"
OFFICIAL_BASE = GOLDEN / "e2e/tiny-llava-onevision-qwen2-ov"


@pytest.fixture(scope="module")
def run_folder(tiny_setup: TinySetup, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config, an encoder and a trained folder."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    imagebind_audio.save(imagebind_audio.Tower(16, 1, 2, SIDE_DIM), folder / "tower.safetensors")
    settings = config.dump(make_config(*tiny_setup, max_steps=2))
    encoder = f"encoder: {folder}/tower.safetensors"
    (folder / "run.yaml").write_text(settings.replace("encoder: ''", encoder))
    succeed("train", folder / "run.yaml", "--out", folder / "out")
    return folder


def succeed(*argv: object) -> None:
    assert main.main([str(word) for word in argv]) == 0


def fail(capsys: pytest.CaptureFixture[str], *argv: object, code: int = 1) -> str:
    """Run a command that must end with this exit code and one line; returns the line."""
    capsys.readouterr()
    assert main.main([str(word) for word in argv]) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pave: ")]
    assert len(lines) == 1
    return lines[0]


def test_prepare_extract_eval_score_report_demo(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, ckpt = tmp_path / "data", run_folder / "out/final"
    succeed("prepare", "sideworld", "--out", data, "--train", "2", "--test", "3", "--workers", "1")
    tower = run_folder / "tower.safetensors"
    succeed("extract", "audio", "--videos", data / "videos", "--out", data / "features/audio", "--weights", tower)
    assert load_file(data / "features/audio/test_00001.safetensors")["x"].shape == (7, 1, SIDE_DIM)
    runs: list[object] = []
    for name, options in (("base", ["--base-only"]), ("patched", []), ("shuffled", ["--shuffle-sides"])):
        out = tmp_path / name
        runs += [f"--{name}", out]
        line = ["eval", "--ckpt", ckpt, f"data.root={data}", "--out", out, "--workers", "0", "--max-new-tokens", "4"]
        succeed(*line, *options)
        lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
        assert [set(line) for line in lines] == [{"qid", "text"}] * 15
    metrics = json.loads((tmp_path / "patched/metrics.json").read_text())
    assert metrics["metrics"]["n"] == 15
    capsys.readouterr()
    succeed("score", tmp_path / "patched/predictions.jsonl", "--task", "sideworld", "--data", data)
    assert "which_sound" in capsys.readouterr().out
    assert json.loads((tmp_path / "patched/metrics.json").read_text()) == metrics
    succeed("side-report", *runs, "--out", tmp_path)
    assert "| audio questions |" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "report.png").stat().st_size > 5000
    video = data / "videos/test_00000.mp4"
    succeed("demo", "--ckpt", ckpt, "--video", video, "--ask", "Which sound?", "--max-new-tokens", "3")


def test_show_and_list(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    succeed("show", run_folder / "run.yaml", "sides.audio.num_layers=3")
    text = capsys.readouterr().out
    assert "num_layers: 3" in text
    assert "patch audio" in text
    succeed("list")
    assert "sides: audio" in capsys.readouterr().out


@pytest.mark.parametrize("renamed", RENAMED_ARGUMENTS, ids=lambda renamed: " ".join((renamed.command, *renamed.words)))
def test_an_argument_of_version_01_is_answered_with_the_present_one(
    renamed: tuple[str, tuple[str, ...], str], capsys: pytest.CaptureFixture[str]
) -> None:
    command, words, replacement = renamed
    assert replacement in fail(capsys, command, "some", *words, "value", code=2)
    assert replacement in fail(capsys, command, "=".join(words), code=2)
    present = replacement.split()[1]
    assert present in {entry.name for entry in main.COMMANDS}


def test_real_video_without_sound_silent_or_cut_off(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mute = copy_picture(BUNNY, tmp_path / "mute.mp4", silence=False)
    silent = copy_picture(BUNNY, tmp_path / "silent.mp4", silence=True)
    (tmp_path / "cut.mp4").write_bytes(BUNNY.read_bytes()[:600_000])
    line = ["demo", "--ckpt", run_folder / "out/final", "--ask", "What is seen?", "--max-new-tokens", "3", "--video"]
    for video in ([BUNNY], [BUNNY, "--without", "audio"], [mute, "--without", "audio"], [silent]):
        succeed(*line, *video)
    assert "has no sound track" in fail(capsys, *line, mute)
    assert "cut off" in fail(capsys, *line, tmp_path / "cut.mp4")
    assert "no such file" in fail(capsys, *line, tmp_path / "none.mp4")


def test_ready_features(
    tiny_setup: TinySetup, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video, ours = tiny_setup.data / "videos/test_00000.mp4", tiny_setup.data / "features/audio/test_00000.safetensors"
    published = tmp_path / "published.pt"
    line = ["demo", "--ckpt", run_folder / "out/final", "--ask", "What?", "--max-new-tokens", "3", "--video", video]
    succeed(*line, "--features", f"audio={ours}")
    line += ["--features", f"audio={published}"]
    torch.save(torch.randn(6, SIDE_DIM).bfloat16(), published)
    succeed(*line)
    torch.save(torch.randn(6, SIDE_DIM + 1), published)
    assert f"width {SIDE_DIM + 1}, this patch needs {SIDE_DIM}" in fail(capsys, *line)
    torch.save(torch.full((6, SIDE_DIM), float("nan")), published)
    assert "NaN" in fail(capsys, *line)
    assert "did you mean 'audio'" in fail(capsys, *line, "--features", f"audoi={published}")
    assert "expected SIDE=FILE" in fail(capsys, *line, "--features", ours)


def test_bad_data(tiny_setup: TinySetup, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = shutil.copytree(tiny_setup.data, tmp_path / "data")
    feature = root / "features/audio/train_00000.safetensors"
    train = ["train", run_folder / "run.yaml", f"data.root={root}", "--out", tmp_path / "out"]
    tensors = load_file(feature)
    meta = feature_files.Meta("audio", "imagebind_audio", "x.mp4")
    for tokens, message in (
        (torch.zeros(5, 1, SIDE_DIM + 3), "width"),
        (tensors["x"] * float("nan"), "NaN"),
        (torch.zeros(0, 1, SIDE_DIM), "empty"),
    ):
        for file in feature.parent.glob("train_*.safetensors"):
            feature_files.write(file, SideTokens(tokens), meta)
        line = fail(capsys, *train, "train.dataloader_num_workers=1")
        assert message in line
        assert "train_0000" in line
    feature.unlink()
    line = fail(capsys, *train)
    assert all(text in line for text in (str(feature), "1 of 8 files", "pave extract audio"))
    assert not (tmp_path / "out/final").exists()
    records = (root / "scenes_train.jsonl").read_text()
    (root / "scenes_train.jsonl").write_text(records.replace("videos/train_00001.mp4", "../../train_00001.mp4"))
    assert "outside the data root" in fail(capsys, *train)


def test_keep_going_counts_unreadable_questions(
    tiny_setup: TinySetup, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(tiny_setup.data, tmp_path / "data")
    video = root / "videos/test_00001.mp4"
    video.write_bytes(video.read_bytes()[:5000])
    evaluate = ["eval", "--ckpt", run_folder / "out/final", f"data.root={root}", "--out", tmp_path / "e"]
    evaluate += ["--workers", "0", "--max-new-tokens", "3"]
    line = fail(capsys, *evaluate)
    assert "test_00001.mp4" in line
    assert "--keep-going" in line
    assert not (tmp_path / "e/predictions.jsonl").exists()
    succeed(*evaluate, "--keep-going")
    result = json.loads((tmp_path / "e/metrics.json").read_text())
    assert (result["unreadable"], result["metrics"]["missing"], result["metrics"]["n"]) == (5, 5, 15)


def test_extract_names_every_failure(
    tiny_setup: TinySetup, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = shutil.copytree(tiny_setup.data / "videos", tmp_path / "videos")
    (videos / "train_00000.mp4").write_bytes(b"not a video")
    out, tower = tmp_path / "features", run_folder / "tower.safetensors"
    extract = ["extract", "audio", "--out", out, "--weights", tower, "--videos", videos]
    assert "1 of 7 items failed" in fail(capsys, *extract)
    failures = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
    assert [failure["item"] for failure in failures] == ["train_00000"]
    assert "train_00000.mp4: damaged" in failures[0]["failure"]
    assert len(list(out.glob("*.safetensors"))) == 6
    shutil.copy(tiny_setup.data / "videos/train_00000.mp4", videos / "train_00000.mp4")
    succeed(*extract)
    assert len(list(out.glob("*.safetensors"))) == 7
    assert not (out / "failures.jsonl").exists()
    assert "no such folder" in fail(capsys, *extract[:-1], tmp_path / "no")
    assert "did you mean 'audio'" in fail(capsys, "extract", "adio", *extract[2:])


def test_bad_checkpoints(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ckpt = shutil.copytree(run_folder / "out/final", tmp_path / "ckpt")
    demo = ["demo", "--ckpt", ckpt, "--ask", "What?", "--video", BUNNY]
    assert "no such folder" in fail(capsys, *demo, "--base", tmp_path / "nowhere")
    assert "config.json: no such file" in fail(capsys, *demo, "--base", tmp_path)
    assert "another base?" in fail(capsys, *demo, "--base", OFFICIAL_BASE, "base.vision_heads=4")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "not to be had from the hub" in fail(capsys, *demo, "--base", "nobody/nothing")
    (ckpt / "patch.safetensors").write_bytes(b"half")
    assert "patch.safetensors" in fail(capsys, *demo)
    (ckpt / "pave.yaml").unlink()
    assert "no pave.yaml" in fail(capsys, *demo)


def test_bad_predictions(tiny_setup: TinySetup, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "predictions.jsonl"
    for text, message in (
        ("nonsense", "predictions.jsonl:1: cannot be read"),
        ('{"qid": "no", "text": ""}', "not one of this split"),
        ('{"qid": "test_00000.which_sound", "text": ""}\n' * 2, "answered twice"),
    ):
        file.write_text(text)
        assert message in fail(capsys, "score", file, "--task", "sideworld", "--data", tiny_setup.data)


def test_official_folder_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["base.vision_heads=4", "base.dtype=float32", "base.frames=4"]
    demo = ["demo", "--ckpt", OFFICIAL, "--base", OFFICIAL_BASE, *settings, "--video", BUNNY, "--max-new-tokens", "8"]
    features = GOLDEN / "e2e/data/audio/vid_a.pt"
    succeed(*demo, "--features", f"audio={features}", "--ask", "Did you hear the sound of a dog barking?")
    assert capsys.readouterr().out.strip()
    assert official.is_official(OFFICIAL)


def test_a_missing_device_is_a_user_error(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    line = fail(capsys, "eval", "--ckpt", tmp_path, "--out", tmp_path / "out", "--device", "cuda")
    assert line == "pave: --device cuda: no CUDA device found; use cpu"
