"""`pave prepare`: the official files from raw annotations, read back as the same questions."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from helpers.media_files import write_clip
from helpers.paths import FIXTURES, GOLDEN, read_json
from helpers.task_data import load_fixture
from helpers.tiny_model import TinySetup, make_config

from pave.checkpoints import build
from pave.cli import main
from pave.data import checks
from pave.data.dataset import QuestionDataset
from pave.tasks import _official_files, avsd, videomme
from pave.tasks.base import get_task
from pave.types import UserError

TASKS = ["avsd", "avqa", "music_avqa", "scanqa", "sqa3d", "egoexo", "llava_video"]
PREPARED = [
    ("avsd", "train", "train_prepared"),
    ("avqa", "train", "train_prepared"),
    ("music_avqa", "train", "train_prepared"),
    ("scanqa", "train", "train_prepared"),
    ("scanqa", "val", "val_prepared"),
    ("sqa3d", "train", "train_prepared"),
    ("sqa3d", "test", "test_prepared"),
    ("egoexo", "train", "train_prepared"),
]


def golden(name: str) -> dict:
    return read_json(GOLDEN / "scoring/annotation_conversion.json")[name]


@pytest.mark.parametrize(("name", "split", "prepared"), PREPARED)
def test_prepared_questions_equal_the_raw_ones(name: str, split: str, prepared: str, tmp_path: Path) -> None:
    task = get_task(name)
    lines = task.prepare(FIXTURES / name, tmp_path)
    assert any(task.files[prepared] in line for line in lines)
    raw_and_prepared = [
        [(task.prompt(q), task.target(q), q.history, q.video, q.features) for q in questions]
        for questions in (load_fixture(name, split), task.load(prepared, tmp_path))
    ]
    assert raw_and_prepared[0] == raw_and_prepared[1]


@pytest.mark.parametrize("name", TASKS)
def test_a_second_run_changes_nothing_and_repairs_broken_files(name: str, tmp_path: Path) -> None:
    prepare = get_task(name).prepare
    lines = prepare(FIXTURES / name, tmp_path)
    files = {f: (f.stat().st_mtime_ns, f.read_bytes()) for f in tmp_path.rglob("*.json")}
    assert files
    assert prepare(FIXTURES / name, tmp_path) == lines
    assert {f: (f.stat().st_mtime_ns, f.read_bytes()) for f in files} == files
    broken = sorted(files)[0]
    broken.write_text("[")
    prepare(FIXTURES / name, tmp_path)
    assert {f: f.read_bytes() for f in files} == {f: content for f, (_, content) in files.items()}
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("name", TASKS)
def test_nothing_to_prepare_from(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none of .*; download at least one|no such annotation file"):
        get_task(name).prepare(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("name", ["avsd", "music_avqa", "scanqa", "sqa3d"])
def test_training_records_are_the_official_ones(name: str, tmp_path: Path) -> None:
    expected = golden(f"{name}_training_format")
    raw = golden("music_avqa_template_filling")["input"] if name == "music_avqa" else expected["input"]
    file = tmp_path / get_task(name).files["train"]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(raw))
    get_task(name).prepare(tmp_path, tmp_path)
    assert read_json(tmp_path / get_task(name).files["train_prepared"]) == expected["output"]


def test_scanqa_and_sqa3d_test_files_are_the_official_ones(tmp_path: Path) -> None:
    questions, answers = golden("scanqa_val_question_file"), golden("scanqa_val_answer_file")
    (tmp_path / "qa").mkdir()
    (tmp_path / "qa/ScanQA_v1.0_val.json").write_text(json.dumps(questions["input"]))
    get_task("scanqa").prepare(tmp_path, tmp_path)
    assert read_json(tmp_path / "llava3d_scanqa_val_question.json") == questions["output"]
    assert read_json(tmp_path / "llava3d_scanqa_val_answer.json") == answers["output"]
    expected = golden("sqa3d_eval_files")
    (tmp_path / "ScanQA_format").mkdir()
    (tmp_path / "ScanQA_format/SQA_test.json").write_text(json.dumps(expected["input"]))
    get_task("sqa3d").prepare(tmp_path, tmp_path)
    for name, rows in expected["output"].items():
        assert read_json(tmp_path / name) == rows


def test_avsd_references_are_the_official_ones(tmp_path: Path) -> None:
    expected = golden("avsd_coco_ground_truth")
    task = get_task("avsd")
    (tmp_path / task.files["test"]).write_text(json.dumps(expected["input"]))
    assert avsd.to_coco(task.load("test", tmp_path), expected["coco_sample"]) == expected["output"]
    task.prepare(tmp_path, tmp_path)
    file = read_json(tmp_path / "avsd_test_coco.json")
    assert (file["info"], file["licenses"]) == ({}, [])
    assert file["annotations"] == expected["output"]["annotations"]


def test_avqa_links_what_vggsound_has(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    shutil.copytree(FIXTURES / "avqa", raw)
    names = sorted({Path(q.video).name for split in ("train", "val") for q in load_fixture("avqa", split)})
    assert names[0].startswith("-")
    for name in [*names[:2], "other_000001.mp4"]:
        (raw / "scratch/part1").mkdir(parents=True, exist_ok=True)
        (raw / "scratch/part1" / name).write_bytes(name.encode())
    lines = get_task("avqa").prepare(raw, out)
    assert sorted(f.name for f in (out / "video").iterdir()) == names[:2]
    assert (out / "video" / names[0]).read_bytes() == names[0].encode()
    missing = read_json(out / "avqa_missing_train.json") + read_json(out / "avqa_missing_val.json")
    assert sorted(missing) == names[2:]
    assert any("missing are named" in line for line in lines)
    # A link into nothing, as after the source moved, is made again.
    (out / "video" / names[1]).unlink()
    os.symlink(tmp_path / "gone.mp4", out / "video" / names[1])
    get_task("avqa").prepare(raw, out)
    assert (out / "video" / names[1]).read_bytes() == names[1].encode()


def test_videomme_subtitles_at_the_frames(tmp_path: Path) -> None:
    task, raw = get_task("videomme"), tmp_path / "raw"
    shutil.copytree(FIXTURES / "videomme", raw)
    texts = videomme.read_srt(raw / "subtitle/abcDEF12345.srt")
    assert list(texts) == [(0, 1.5), (1.5, 2), (2, 3), (3, 3.5)]
    assert texts[2, 3].count("</font>") == 2
    # White lines alone, of each entry the first; an entry lasts until just before its end.
    assert videomme.subtitles_at_frames(texts, 10, [0, 14, 15, 29, 30]) == "Good morning.\nSit down,"
    assert videomme.subtitles_at_frames(texts, 10, [15, 19]) == ""
    long = {(float(i), i + 1.0): f'<font color="white" size=".72c">{i}</font>' for i in range(300)}
    frames = [9 * i for i in range(32)]
    assert videomme.subtitles_at_frames(long, 1, frames).split() == [str(i) for i in set(frames)]
    (raw / "data").mkdir()
    write_clip(raw / "data/abcDEF12345.mp4")
    lines = task.prepare(raw, tmp_path / "out")
    assert lines[-1] == "1 of 3 videos are there, 2 without subtitles"
    assert read_json(tmp_path / "out/subtitles_32.json") == {"abcDEF12345": "Good morning.\nSit down,"}
    (raw / "subtitle/abcDEF12345.srt").write_text("1\n00:00 --> later\nhello\n")
    with pytest.raises(UserError, match=r"abcDEF12345\.srt: '00:00 --> later' is no line of times, expected 00:00:01"):
        task.prepare(raw, tmp_path / "out")


def test_llava_video_takes_the_first_two_of_a_video(tmp_path: Path) -> None:
    get_task("llava_video").prepare(FIXTURES / "llava_video", tmp_path)
    files = sorted(tmp_path.rglob("*_2pv.json"))
    assert len(files) == 4
    for file in files:
        raw = read_json(FIXTURES / "llava_video" / file.parent.name / file.name.replace("_2pv", ""))
        selected = read_json(file)
        assert all(record in raw for record in selected)
        assert max(Counter(record["id"] for record in selected).values()) <= 2


def test_a_file_is_written_completely_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    _official_files.write_json(file, [1, 2])
    with pytest.raises(TypeError):
        _official_files.write_json(file, [object()])
    assert read_json(file) == [1, 2]


def test_prepared_avqa_is_read_through_its_links(tiny_setup: TinySetup, tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    shutil.copytree(FIXTURES / "avqa", raw)
    (raw / "scratch").mkdir()
    names = {Path(q.video).name for split in ("train", "val") for q in load_fixture("avqa", split)}
    for name in names:
        write_clip(raw / "scratch" / name, 12)
    get_task("avqa").prepare(raw, out)
    assert all((out / "video" / name).is_symlink() for name in names)
    (out / "annotation").symlink_to(raw / "annotation")
    report = checks.check_task("avqa", out)
    assert [line for line in report.lines if "missing" in line or "outside" in line] == [
        line for line in report.lines if line.startswith("  videos missing") and " 0 of " in line
    ]
    config = make_config(tiny_setup.base, out)
    config = dataclasses.replace(config, sides={}, data=dataclasses.replace(config.data, task="avqa"))
    base = build.load_base(config.base)
    for split in ("train", "train_prepared", "val"):
        questions = QuestionDataset(config, base, split, with_answers=True)
        assert questions[0].pixels is not None


@pytest.mark.parametrize("video", ["../../secret", "a/../../../secret", "a/../secret"])
def test_an_annotation_that_leaves_the_data_is_refused_by_all_commands(
    video: str, tiny_setup: TinySetup, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even where there is such a file, and a link to its folder."""
    out = tmp_path / "out"
    (out / "video").mkdir(parents=True)
    (out / "video/a").symlink_to(tmp_path)
    write_clip(tmp_path / "secret.mp4", 12)
    record = {"id": 1, "conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A"}]}
    file = out / get_task("avqa").files["train_prepared"]
    file.write_text(json.dumps([{**record, "video": video}]))
    config = make_config(tiny_setup.base, out)
    config = dataclasses.replace(config, sides={}, data=dataclasses.replace(config.data, task="avqa"))
    with pytest.raises(UserError, match="question 1 points outside the data root"):
        QuestionDataset(config, build.load_base(config.base), "train_prepared", with_answers=True)
    assert main.main(["doctor", "--task", "avqa", "--data", str(out), "--split", "train_prepared"]) == 1
    assert "outside the root                 1 of 1: video/" in capsys.readouterr().out
