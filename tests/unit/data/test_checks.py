"""What the doctor finds in stores and data sets, and what the exit code says."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.media_files import tone, write_clip
from helpers.tiny_model import TinySetup, make_config

from pave.checkpoints import build
from pave.cli import main
from pave.data import checks, extraction
from pave.data.dataset import QuestionDataset
from pave.media import feature_files
from pave.types import SideTokens, UserError


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store of four clips; the folder of clips lies beside it."""
    for i in range(4):
        path = tmp_path / f"videos/{i}.mp4"
        path.parent.mkdir(exist_ok=True)
        write_clip(path, 5, sound=tone(2 + i))
    extraction.main("audio", tmp_path / "videos", tmp_path / "store", "asset:sideworld/audio.safetensors")
    return tmp_path / "store"


def lines(report: checks.Report) -> dict[str, str]:
    return {line[:28].strip(): line[28:].strip() for line in report.lines[1:]}


def test_a_sound_store(store: Path) -> None:
    report = checks.check_store(store, source=store.parent / "videos", dim=64)
    assert report.problems == 0
    rows = [json.loads(line) for line in (store / checks.INDEX).read_text().splitlines()]
    assert [row["name"] for row in rows] == ["0", "1", "2", "3"]
    assert rows[3] | {"weights": ""} == {
        "name": "3",
        "shape": [4, 1, 64],
        "seconds": [1.0, 4.0],
        "dtype": "F16",
        "extractor": "imagebind_audio",
        "options": '{"inplace_mean": false, "mp3": false}',
        "weights": "",
        "source": "3.mp4",
        "source_bytes": str((store.parent / "videos/3.mp4").stat().st_size),
        "source_sha256": extraction.file_hash(store.parent / "videos/3.mp4"),
    }


def test_every_kind_of_fault_is_counted_and_named(store: Path) -> None:
    videos, meta = store.parent / "videos", feature_files.read_meta(store / "0.safetensors")
    (store / "0.safetensors").unlink()
    tokens = feature_files.read(store / "1.safetensors", ["imagebind_audio"])
    # Also made from a source of another size.
    feature_files.write(store / "1.safetensors", SideTokens(tokens.x / 3), meta)
    feature_files.write(store / "2.safetensors", SideTokens(tokens.x * torch.nan), meta)
    write_clip(videos / "3.mp4", 5, sound=tone(9))
    write_clip(videos / "4.mp4", 5, sound=tone(2))
    other_meta = feature_files.Meta("audio", "imagebind_audio", "x")
    feature_files.write(store / "5.safetensors", SideTokens(torch.full((1, 1, 16), 5.0)), other_meta)
    (store / "6.safetensors").write_bytes((store / "3.safetensors").read_bytes()[:100])
    counts = lines(checks.check_store(store, source=videos))
    assert counts["broken, NaN or odd"].startswith("4 of 5: 1 (a row's norm is")
    assert counts["made in another way"] == "1 of 5: 5"
    assert counts["missing"] == "2 of 5: 0, 4"
    assert counts["stale (source changed)"] == "3 of 5: 1, 2, 3"
    problems = {row["name"]: row.get("problem", "") for row in map(json.loads, (store / checks.INDEX).open())}
    assert [name for name, problem in problems.items() if not problem] == ["3"]
    assert "NaN" in problems["2"]
    assert problems["5"] == "width 16, expected 64"
    assert "not a whole safetensors file" in problems["6"]


def test_official_features(tmp_path: Path) -> None:
    x = torch.randn(3, 1024)
    torch.save((20 * x / x.norm(dim=1, keepdim=True)).bfloat16(), tmp_path / "good.pt")
    torch.save(x.bfloat16(), tmp_path / "odd.pt")
    with pytest.raises(UserError, match=r"no store\.json; say with --side"):
        checks.check_store(tmp_path)
    for text, message in (("{", "not valid JSON"), ("[]", "holds a list"), ('{"side": "audio"}', "has no 'extractor'")):
        (tmp_path / "store.json").write_text(text)
        with pytest.raises(UserError, match=rf"store\.json: {message}.*; expected|expected one JSON object"):
            checks.check_store(tmp_path)
    (tmp_path / "store.json").unlink()
    report = checks.check_store(tmp_path, side="audio", dim=1024)
    assert report.problems == 1
    assert "odd (a row's norm is" in report.lines[1]


def test_a_task_without_some_of_its_files(
    tiny_setup: TinySetup, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    shutil.copytree(tiny_setup.data, root)
    assert main.main(["doctor", "--task", "sideworld", "--data", str(root)]) == 0
    (root / "videos/test_00000.mp4").unlink()
    (root / "features/audio/train_00001.safetensors").unlink()
    (root / "features/audio/train_00002.safetensors").unlink()
    capsys.readouterr()
    features = str(root / "features/audio")
    assert main.main(["doctor", features, "--side", "audio", "--task", "sideworld", "--data", str(root)]) == 1
    text = capsys.readouterr().out
    assert "videos missing                   1 of" in text
    assert "features missing                 2 of" in text
    assert "train_00001.safetensors, train_00002.safetensors" in text
    assert main.main(["doctor", "--task", "avqa", "--data", str(tmp_path)]) == 1
    assert "train: " in capsys.readouterr().out
    assert main.main(["doctor"]) == 1
    assert "nothing to check" in capsys.readouterr().err


def test_questions_may_go_without_a_side(
    tiny_setup: TinySetup, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    root = tmp_path / "data"
    shutil.copytree(tiny_setup.data, root)
    (root / "features/audio/test_00000.safetensors").unlink()
    config = make_config(tiny_setup.base, root, max_steps=1)
    base = build.create(config).base
    with pytest.raises(UserError, match="no such audio features file"):
        QuestionDataset(config, base, "test", False)
    questions = QuestionDataset(replace(config, data=replace(config.data, missing="absent")), base, "test", False)
    assert "1 of" in caplog.text
    is_absent = [questions[i].sides["audio"] is None for i in range(len(questions))]
    assert is_absent == [question.video.endswith("test_00000.mp4") for question in questions.questions]
    assert 0 < sum(is_absent) < len(is_absent)
