"""Extraction to a store: one file an item, resumed, refused and split into parts."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.media_files import tone, write_clip
from helpers.paths import ROOT
from safetensors.torch import load_file

from pave.data import checks, extraction
from pave.media import feature_files
from pave.media.worker_pool import read_all
from pave.sides import audio
from pave.types import MediaItem, SideTokens, UserError

TOWER = "asset:sideworld/audio.safetensors"
LIST = [MediaItem(name, Path(name)) for name in ("a", "slow", "b", "dies", "bad", "c")]


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    """Five clips in two folders."""
    for i, name in enumerate(["a", "b", "c", "more/a", "more/d"]):
        path = tmp_path / f"videos/{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_clip(path, 10, sound=tone(2 + i, hertz=200 * (i + 1)))
    return tmp_path / "videos"


def run(sounds: Path, out: Path, *options: str, part: tuple[int, int] = (0, 1), **settings: object) -> int:
    return extraction.main("audio", sounds, out, TOWER, options, extraction.Settings(workers=0, **settings), part)  # type: ignore[arg-type]


def files(out: Path) -> dict[str, bytes]:
    return {f.relative_to(out).as_posix(): f.read_bytes() for f in sorted(out.rglob("*.safetensors"))}


def test_one_file_an_item_that_says_where_it_came_from(sounds: Path, tmp_path: Path) -> None:
    assert run(sounds, tmp_path / "out") == 5
    assert list(files(tmp_path / "out")) == [f"{n}.safetensors" for n in ("a", "b", "c", "more/a", "more/d")]
    meta = feature_files.read_meta(tmp_path / "out/more/d.safetensors")
    source = (sounds / "more/d.mp4").read_bytes()
    assert (meta.side, meta.extractor, meta.source) == ("audio", "imagebind_audio", "d.mp4")
    assert (meta.source_bytes, meta.source_sha256) == (str(len(source)), hashlib.sha256(source).hexdigest())
    assert json.loads(meta.options) == {"inplace_mean": False, "mp3": False}
    assert len(meta.weights) == 64
    stored = load_file(tmp_path / "out/more/d.safetensors")
    assert stored["x"].dtype == torch.float16
    assert stored["seconds"].tolist() == [1, 2, 3, 4, 5]
    assert audio.SideChannel().load(tmp_path / "out/more/d.safetensors").x.dtype == torch.float32


def test_finished_files_are_kept_and_changed_sources_extracted_again(sounds: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(sounds, out)
    before = files(out)
    (out / "b.safetensors").unlink()
    (out / "more/a.safetensors").write_bytes(before["more/a.safetensors"][:-20])  # a copy that was cut off
    write_clip(sounds / "c.mp4", 10, sound=tone(6))
    assert run(sounds, out) == 3
    after = files(out)
    assert {name for name in before if before[name] != after[name]} == {"c.safetensors"}
    assert run(sounds, out) == 0


def test_a_store_holds_features_of_one_kind(sounds: Path, tmp_path: Path) -> None:
    run(sounds, tmp_path / "out")
    with pytest.raises(UserError, match=r"store\.json: this store holds features with options .*another folder"):
        run(sounds, tmp_path / "out", "mp3=true")
    with pytest.raises(UserError, match="with dtype float16"):
        run(sounds, tmp_path / "out", dtype="float32")
    with pytest.raises(UserError, match="inplace_maen=true: unknown key 'inplace_maen'; did you mean 'inplace_mean'"):
        run(sounds, tmp_path / "other", "inplace_maen=true")
    (tmp_path / "out/store.json").write_text('{"side": "audio"}')
    with pytest.raises(UserError, match=r"store\.json: has no 'extractor'; expected the manifest of a store"):
        run(sounds, tmp_path / "out")


def test_parts_of_several_processes_make_all_files(sounds: Path, tmp_path: Path) -> None:
    run(sounds, tmp_path / "whole")
    assert [run(sounds, tmp_path / "parts", part=(i, 3)) for i in range(3)] == [2, 2, 1]
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    assert extraction.process_part({"RANK": "2", "WORLD_SIZE": "4"}) == (2, 4)
    slurm = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "5", "SLURM_ARRAY_TASK_COUNT": "3"}
    assert extraction.process_part(slurm) == (2, 3)
    assert extraction.process_part({}) == (0, 1)


def test_failures_and_notes_are_files(sounds: Path, tmp_path: Path) -> None:
    write_clip(sounds / "mute.mp4", 10)
    write_clip(sounds / "silent.mp4", 10, sound=np.zeros((1, 48_000)))
    write_clip(sounds / "short.mp4", 10, sound=tone(0.5))
    with pytest.raises(UserError, match=r"1 of 8 items failed, named in failures.jsonl, as: .*has no sound track"):
        run(sounds, tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out/failures.jsonl").read_text().splitlines()]
    assert [row["item"] for row in rows] == ["mute"]
    notes = [json.loads(line) for line in (tmp_path / "out/notes.jsonl").read_text().splitlines()]
    assert {row["item"]: row["note"].split(",")[-1] for row in notes} == {
        "silent": "silent",
        "short": " padded with silence to 2 s",
    }
    assert len(files(tmp_path / "out")) == 7


def test_lists(sounds: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("videos/a.mp4\nvideos/more/a.mp4\tother/name\n")
    run(tmp_path / "list.txt", tmp_path / "out")
    assert list(files(tmp_path / "out")) == ["a.safetensors", "other/name.safetensors"]
    (tmp_path / "list.txt").write_text("videos/a.mp4\nvideos/more/a.mp4\n")
    with pytest.raises(UserError, match=r"a\.mp4 and .*a\.mp4: both would be 'a'"):
        run(tmp_path / "list.txt", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: nothing to extract"):
        run(tmp_path / "empty", tmp_path / "out")


def test_a_value_too_large_for_half_precision_is_a_failure(
    sounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode_large(*arguments: object) -> SideTokens:
        return SideTokens(torch.full((1, 1, 4), 1e6))

    monkeypatch.setattr(audio.SideChannel, "encode", encode_large)
    with pytest.raises(UserError, match=r"5 of 5 items failed.*NaN or infinity"):
        run(sounds, tmp_path / "out")
    assert not files(tmp_path / "out")


def read(item: MediaItem) -> int:
    """Behaves as its name says."""
    if item.name == "slow":
        time.sleep(60)
    if item.name == "dies":
        os.kill(os.getpid(), signal.SIGSEGV)
    if item.name == "bad":
        raise UserError("bad: cannot be read")
    return ord(item.name)


def test_no_file_ends_the_run() -> None:
    results = {item.name: value for item, value in read_all(read, LIST, workers=2, seconds=2)}
    assert list(results) == [item.name for item in LIST]
    assert [results[name] for name in "abc"] == [97, 98, 99]
    assert "slow: reading took over 2 s" in str(results["slow"])
    assert "dies: reading it ended the process" in str(results["dies"])
    assert str(results["bad"]) == "bad: cannot be read"
    assert all(isinstance(results[name], UserError) for name in ("slow", "dies", "bad"))


def test_a_killed_run_is_resumed(tmp_path: Path) -> None:
    check_killed(tmp_path, clips=12, files_per_run=4)


def check_killed(folder: Path, clips: int, files_per_run: int) -> None:
    """SIGKILL after so many new files, until it is done: byte for byte the result of an undisturbed run."""
    for i in range(clips):
        path = folder / f"videos/{i:04d}.wav"
        path.parent.mkdir(exist_ok=True)
        write_clip(path, codec=None, sound=tone(2, hertz=100 + i), audio_codec="pcm_s16le")
    out = folder / "out"
    (folder / "list.txt").write_text("".join(f"videos/{i:04d}.wav\n" for i in range(clips)))
    command = [sys.executable, "-m", "pave", "extract", "audio", "--weights", TOWER, "--workers", "1"]
    command += ["--videos", str(folder / "list.txt"), "--out", str(out)]
    kills = 0
    while True:
        count = len([*out.rglob("*.safetensors")])
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
        while process.poll() is None and len([*out.rglob("*.safetensors")]) < count + files_per_run:
            time.sleep(0.01)
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
    assert process.returncode == 0
    assert kills > 1
    assert run(folder / "list.txt", folder / "undisturbed") == clips
    assert files(out) == files(folder / "undisturbed")


def test_torchrun_and_a_slurm_array_do_their_parts(sounds: Path, tmp_path: Path) -> None:
    """One process a part, as the launchers start them; the doctor finds nothing missing."""
    run(sounds, tmp_path / "whole")
    environment = {**os.environ, "SLURM_SUBMIT_DIR": str(ROOT), "DEVICE": "cpu", "OMP_NUM_THREADS": "1"}
    script = ["bash", str(ROOT / "scripts/slurm/extract.sbatch"), "audio", str(sounds), str(tmp_path / "array"), TOWER]
    array = {"SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_COUNT": "2"}
    jobs = [subprocess.Popen(script, env={**environment, **array, "SLURM_ARRAY_TASK_ID": str(i)}) for i in range(2)]
    assert [job.wait() for job in jobs] == [0, 0]
    assert files(tmp_path / "array") == files(tmp_path / "whole")
    report = checks.check_store(tmp_path / "array", source=sounds)
    assert report.problems == 0


def test_features_of_unknown_origin_are_left_alone(sounds: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.pt").write_bytes(b"published")
    with pytest.raises(UserError, match=r"a\.pt: features are there that have no store\.json"):
        run(sounds, tmp_path / "out")
    assert [f.name for f in (tmp_path / "out").iterdir()] == ["a.pt"]
