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
from pave.media import feature_files
from pave.models.encoders import imagebind_audio
from pave.types import SideTokens


@pytest.fixture(scope="module")
def run_folder(tiny_setup: TinySetup, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config, an encoder and a trained folder."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    imagebind_audio.save(imagebind_audio.Tower(16, 1, 2, SIDE_DIM), folder / "tower.safetensors")
    settings = config.dump(make_config(*tiny_setup, max_steps=2)).replace(
        "encoder: ''", f"encoder: {folder}/tower.safetensors"
    )
    (folder / "run.yaml").write_text(settings)
    assert main.main(["train", str(folder / "run.yaml"), "--out", str(folder / "out")]) == 0
    return folder


def fails(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """Run a command that must end with exit code 1 and one line; returns the line."""
    capsys.readouterr()
    assert main.main([str(a) for a in argv]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pave: ")]
    assert len(lines) == 1
    return lines[0]


def test_prepare_extract_eval_score_compare_demo(
    tiny_setup: TinySetup, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    assert main.main(["prepare", "sideworld", "--out", str(data), "--train", "2", "--test", "3", "--workers", "1"]) == 0
    tower = str(run_folder / "tower.safetensors")
    extract = ["extract", "audio", "--videos", str(data / "videos"), "--out", str(data / "features/audio")]
    assert main.main([*extract, "--weights", tower]) == 0
    assert load_file(data / "features/audio/test_00001.safetensors")["x"].shape == (7, 1, SIDE_DIM)
    ckpt, root = str(run_folder / "out/final"), f"data.root={data}"
    for name, options in (("base", ["--base-only"]), ("patched", []), ("shuffled", ["--shuffle-sides"])):
        evaluate = [
            "eval",
            "--ckpt",
            ckpt,
            root,
            "--out",
            str(tmp_path / name),
            "--workers",
            "0",
            "--max-new-tokens",
            "4",
        ]
        assert main.main([*evaluate, *options]) == 0
        lines = [json.loads(line) for line in (tmp_path / name / "predictions.jsonl").read_text().splitlines()]
        assert len(lines) == 15
        assert all(set(line) == {"qid", "text"} for line in lines)
    metrics = json.loads((tmp_path / "patched/metrics.json").read_text())
    assert metrics["metrics"]["n"] == 15
    capsys.readouterr()
    score = ["score", str(tmp_path / "patched/predictions.jsonl"), "--task", "sideworld", "--data", str(data)]
    assert main.main(score) == 0
    assert "which_sound" in capsys.readouterr().out
    assert json.loads((tmp_path / "patched/metrics.json").read_text()) == metrics
    compare = [x for name in ("base", "patched", "shuffled") for x in (f"--{name}", str(tmp_path / name))]
    assert main.main(["compare", *compare, "--out", str(tmp_path)]) == 0
    assert "| audio questions |" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "report.png").stat().st_size > 5000
    video = str(data / "videos/test_00000.mp4")
    assert main.main(["demo", "--ckpt", ckpt, "--video", video, "--ask", "Which sound?", "--max-new-tokens", "3"]) == 0


def test_show_and_list(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["show", str(run_folder / "run.yaml"), "sides.audio.num_layers=3"]) == 0
    shown = capsys.readouterr().out
    assert "depth: 3" in shown
    assert "patch audio" in shown
    assert main.main(["list"]) == 0
    assert "sides: audio" in capsys.readouterr().out


def test_real_video(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask = ["--ckpt", str(run_folder / "out/final"), "--ask", "What is seen?", "--max-new-tokens", "3"]
    video = str(BUNNY)
    assert main.main(["demo", *ask, "--video", video]) == 0
    assert main.main(["demo", *ask, "--video", video, "--without", "audio"]) == 0


def test_real_video_without_sound_silent_or_cut_off(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mute = copy_picture(BUNNY, tmp_path / "mute.mp4", silence=False)
    silent = copy_picture(BUNNY, tmp_path / "silent.mp4", silence=True)
    (tmp_path / "cut.mp4").write_bytes(BUNNY.read_bytes()[:600_000])
    ask = ["demo", "--ckpt", run_folder / "out/final", "--ask", "What is seen?", "--max-new-tokens", "3", "--video"]
    assert "has no sound track" in fails(capsys, *ask, mute)
    assert main.main([str(a) for a in (*ask, mute, "--without", "audio")]) == 0
    assert main.main([str(a) for a in (*ask, silent)]) == 0
    assert "cut off" in fails(capsys, *ask, tmp_path / "cut.mp4")
    assert "no such file" in fails(capsys, *ask, tmp_path / "none.mp4")


def test_ready_features(
    tiny_setup: TinySetup, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video, good = tiny_setup.data / "videos/test_00000.mp4", tiny_setup.data / "features/audio/test_00000.safetensors"
    ask = ["demo", "--ckpt", run_folder / "out/final", "--ask", "What?", "--max-new-tokens", "3", "--video", video]
    assert main.main([str(a) for a in (*ask, "--features", f"audio={good}")]) == 0
    official = tmp_path / "official.pt"
    torch.save(torch.randn(6, SIDE_DIM).bfloat16(), official)
    assert main.main([str(a) for a in (*ask, "--features", f"audio={official}")]) == 0
    torch.save(torch.randn(6, SIDE_DIM + 1), official)
    assert f"width {SIDE_DIM + 1}, this patch needs {SIDE_DIM}" in fails(
        capsys, *ask, "--features", f"audio={official}"
    )
    torch.save(torch.full((6, SIDE_DIM), float("nan")), official)
    assert "NaN" in fails(capsys, *ask, "--features", f"audio={official}")
    assert "did you mean 'audio'" in fails(capsys, *ask, "--features", f"audoi={official}")
    assert "expected SIDE=FILE" in fails(capsys, *ask, "--features", good)


def test_bad_data(tiny_setup: TinySetup, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "data"
    shutil.copytree(tiny_setup.data, root)
    feature = root / "features/audio/train_00000.safetensors"
    train = ["train", run_folder / "run.yaml", f"data.root={root}", "--out", tmp_path / "out"]
    tensors = load_file(feature)
    meta = feature_files.Meta("audio", "imagebind_audio", "x.mp4")
    for bad, message in (
        (torch.zeros(5, 1, SIDE_DIM + 3), "width"),
        (tensors["x"] * float("nan"), "NaN"),
        (torch.zeros(0, 1, SIDE_DIM), "empty"),
    ):
        for file in feature.parent.glob("train_*.safetensors"):
            feature_files.write(file, SideTokens(bad), meta)
        line = fails(capsys, *train, "train.dataloader_num_workers=1")
        assert message in line
        assert "train_0000" in line
    feature.unlink()
    line = fails(capsys, *train)
    assert str(feature) in line
    assert "1 of 8 files" in line
    assert "pave extract audio" in line
    assert not (tmp_path / "out/final").exists()
    records = (root / "scenes_train.jsonl").read_text()
    (root / "scenes_train.jsonl").write_text(records.replace("videos/train_00001.mp4", "../../train_00001.mp4"))
    assert "outside the data root" in fails(capsys, *train)


def test_keep_going_counts_unreadable_questions(
    tiny_setup: TinySetup, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    shutil.copytree(tiny_setup.data, root)
    bad = root / "videos/test_00001.mp4"
    bad.write_bytes(bad.read_bytes()[:5000])
    evaluate = [
        "eval",
        "--ckpt",
        run_folder / "out/final",
        f"data.root={root}",
        "--out",
        tmp_path / "e",
        "--workers",
        "0",
        "--max-new-tokens",
        "3",
    ]
    line = fails(capsys, *evaluate)
    assert "test_00001.mp4" in line
    assert "--keep-going" in line
    assert not (tmp_path / "e/predictions.jsonl").exists()
    assert main.main([str(a) for a in (*evaluate, "--keep-going")]) == 0
    result = json.loads((tmp_path / "e/metrics.json").read_text())
    assert result["unreadable"] == 5
    assert result["metrics"]["missing"] == 5
    assert result["metrics"]["n"] == 15


def test_extract_names_every_failure(
    tiny_setup: TinySetup, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = tmp_path / "videos"
    shutil.copytree(tiny_setup.data / "videos", videos)
    (videos / "train_00000.mp4").write_bytes(b"not a video")
    argv = [
        "extract",
        "audio",
        "--videos",
        videos,
        "--out",
        tmp_path / "f",
        "--weights",
        run_folder / "tower.safetensors",
    ]
    line = fails(capsys, *argv)
    assert "1 of 7 items failed" in line
    failures = [json.loads(x) for x in (tmp_path / "f/failures.jsonl").read_text().splitlines()]
    assert [f["item"] for f in failures] == ["train_00000"]
    assert "train_00000.mp4: damaged" in failures[0]["failure"]
    assert len(list((tmp_path / "f").glob("*.safetensors"))) == 6
    shutil.copy(tiny_setup.data / "videos/train_00000.mp4", videos / "train_00000.mp4")
    assert main.main([str(a) for a in argv]) == 0
    assert len(list((tmp_path / "f").glob("*.safetensors"))) == 7
    assert not (tmp_path / "f/failures.jsonl").exists()
    assert "no such folder" in fails(
        capsys, "extract", "audio", "--videos", tmp_path / "no", "--out", tmp_path, "--weights", "x"
    )
    assert "did you mean 'audio'" in fails(
        capsys, "extract", "adio", "--videos", videos, "--out", tmp_path, "--weights", "x"
    )


def test_bad_checkpoints(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ckpt = tmp_path / "ckpt"
    shutil.copytree(run_folder / "out/final", ckpt)
    ask = ["demo", "--ckpt", ckpt, "--ask", "What?", "--video", BUNNY]
    assert "no such folder" in fails(capsys, *ask, "--base", tmp_path / "nowhere")
    assert "no config.json" in fails(capsys, *ask, "--base", tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "not to be had from the hub" in fails(capsys, *ask, "--base", "nobody/nothing")
    (ckpt / "patch.safetensors").write_bytes(b"half")
    assert "patch.safetensors" in fails(capsys, *ask)
    (ckpt / "pave.yaml").unlink()
    assert "no pave.yaml" in fails(capsys, *ask)


def test_bad_predictions(tiny_setup: TinySetup, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "predictions.jsonl"
    score = ["score", file, "--task", "sideworld", "--data", tiny_setup.data]
    for text, message in (
        ("nonsense", "predictions.jsonl:1: not a prediction"),
        ('{"qid": "no", "text": ""}', "not one of this split"),
        ('{"qid": "test_00000.which_sound", "text": ""}\n' * 2, "answered twice"),
    ):
        file.write_text(text)
        assert message in fails(capsys, *score)


def test_checkpoint_for_another_base(
    tiny_setup: TinySetup, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = GOLDEN / "e2e/tiny-llava-onevision-qwen2-ov"
    ask = ["demo", "--ckpt", run_folder / "out/final", "--ask", "What?", "--video", BUNNY]
    assert "another base?" in fails(capsys, *ask, "--base", other, "base.vision_heads=4")


def test_official_folder_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    base = GOLDEN / "e2e/tiny-llava-onevision-qwen2-ov"
    feature = GOLDEN / "e2e/data/audio/vid_a.pt"
    argv = ["demo", "--ckpt", GOLDEN / "e2e/tiny_pave_v5_1_3_lora_trained", "--base", base, "base.vision_heads=4"]
    argv += ["base.dtype=float32", "base.frames=4", "--features", f"audio={feature}", "--max-new-tokens", "8"]
    argv += ["--video", BUNNY, "--ask", "Did you hear the sound of a dog barking?"]
    assert main.main([str(a) for a in argv]) == 0
    assert capsys.readouterr().out.strip()
    assert official.is_official(GOLDEN / "e2e/tiny_pave_v5_1_3_lora_trained")


def test_a_device_that_is_not_there_is_said_in_a_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert main.main(["eval", "--ckpt", str(tmp_path), "--out", str(tmp_path / "out"), "--device", "cuda"]) == 1
    assert "--device cuda: no CUDA device found; use cpu" in capsys.readouterr().err
