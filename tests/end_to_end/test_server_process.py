"""The whole server as a process of its own: as documented, with many clients at once, and nothing of it stays."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from helpers.media_files import tone, write_clip
from helpers.paths import ROOT
from helpers.rgbd_scenes import make_plain_scene
from helpers.server_client import MAX_WAITING, NEW_TOKENS, QUESTION, TIMEOUT, Process, serve_process
from helpers.tiny_model import TinySetup

PAGE = ROOT / "doc/guides/serve.md"
pytest_plugins = ["helpers.server_client"]


@pytest.fixture(scope="module")
def process(patches: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A server with three patches."""
    pytest.importorskip("gradio", reason="needs the extra demo")
    added = [word for name in ("camera", "room") for word in ("--patch", f"{name}={patches[name]}")]
    with serve_process(tmp_path_factory.mktemp("process"), "--ckpt", str(patches["audio"]), *added) as server:
        yield server


def resources(process: Process) -> dict[str, int]:
    """Resources of the server and the processes that it started, none of which may grow."""
    family = [process.pid]
    for pid in family:
        for children in Path(f"/proc/{pid}/task").glob("*/children"):  # of each thread
            family += map(int, children.read_text().split())
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in family)
    return {
        "bytes": pages * os.sysconf("SC_PAGE_SIZE"),
        "open files": sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in family),
        "processes": len(family),
        "files": sum(path.is_file() for path in process.temporary.rglob("*")),
    }


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_it_answers_as_documented(process: Process, tiny_setup: TinySetup, tmp_path: Path) -> None:
    shutil.copy(tiny_setup.data / "videos/test_00000.mp4", tmp_path / "clip.mp4")
    shutil.copy(tiny_setup.data / "videos/test_00001.mp4", tmp_path / "behind.mp4")
    write_clip(tmp_path / "other.wav", 0, None, tone(5), audio_codec="pcm_s16le")
    make_plain_scene(tmp_path / "room")
    outputs = []
    for line in PAGE.read_text().splitlines():
        if line.startswith(("curl ", "printf ", "python -m zipfile ")):
            command = line.replace("http://127.0.0.1:7860", process.address).replace("curl ", "curl -s ")
            command = command.replace("python ", f"{sys.executable} ")
            arguments = ["bash", "-c", command]
            done = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path, timeout=TIMEOUT, check=True)
            outputs += [done.stdout] if "curl" in line else []

    assert len(outputs) == 11
    assert not any('"error"' in output for output in outputs), outputs
    stream, chat_stream = outputs.pop(3), outputs.pop(7)
    assert stream.endswith('data: {"done": ["answer"]}\n\n')
    assert chat_stream.endswith("data: [DONE]\n\n")
    both, sound, follow_up, camera, room, as_json, models, chat_sound, chat_room = map(json.loads, outputs)
    assert both["answer"]["text"] != both["base"]["text"]
    assert follow_up["answer"]["patches"] == {}
    assert camera["answer"]["patches"] == {"audio": 1.0, "camera": 1.0}
    assert room["answer"]["patches"] == {"room": 1.0}
    for body, side, steps in (
        (sound, "audio", 4),
        (camera, "camera", 4),
        (room, "room", 2),
        (chat_sound, "audio", 4),
        (chat_room, "room", 2),
    ):
        assert body["facts"]["sides"][side]["steps"] == steps
    assert as_json["answer"]["text"]
    assert [model["id"] for model in models["data"]] == ["pave", "pave-base"]


def test_fifty_at_once_leave_no_memory_no_files_and_no_processes(process: Process, tiny_setup: TinySetup) -> None:
    import httpx

    video = (tiny_setup.data / "videos/test_00000.mp4").read_bytes()
    broken = video[: len(video) // 2]

    def post(number: int) -> Any:
        """A form; every fifth has a broken file."""
        files = {"video": ("clip.mp4", video if number % 5 else broken)}
        form = {"question": QUESTION, "max_new_tokens": str(NEW_TOKENS), "patches": ('["audio"]', "[]")[number % 2]}
        return httpx.post(f"{process.address}/v1/answer", files=files, data=form, timeout=TIMEOUT)

    def post_fifty() -> list[Any]:
        with ThreadPoolExecutor(50) as clients:
            return list(clients.map(post, range(50)))

    patched, bare = post(2).json()["answer"]["text"], post(1).json()["answer"]["text"]
    assert patched != bare
    post_fifty()
    before, counts = resources(process), Counter[int]()
    for _ in range(3):
        for number, response in enumerate(post_fifty()):
            counts[response.status_code] += 1
            if response.status_code == 200:
                assert response.json()["answer"]["text"] == (bare if number % 2 else patched)
                continue
            error = response.json()["error"]
            assert error["code"] == response.status_code
            if response.status_code == 429:
                assert f"{MAX_WAITING + 1} requests are being served or wait" in error["message"]
            assert (response.status_code == 429) == (int(response.headers.get("retry-after", 0)) >= 1)

    assert set(counts) == {200, 415, 429}, counts
    assert counts[200] + counts[415] > 3 * MAX_WAITING
    after, end = resources(process), time.monotonic() + TIMEOUT
    while after["open files"] > before["open files"] and time.monotonic() < end:
        time.sleep(0.1)  # until the last connections are closed
        after = resources(process)
    assert after["bytes"] - before["bytes"] < 16 << 20, (before, after)
    assert all(after[name] <= before[name] for name in ("open files", "processes", "files")), (before, after)
    assert after["processes"] > 1
    assert not any(process.temporary.glob("pave-serve-*/requests/*"))
