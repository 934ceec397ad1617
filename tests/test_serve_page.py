"""The page: what its buttons do, what it opens and what it deletes; and the whole server as a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from clips import cut, tone, write_clip
from serving import QUESTION, Served

from pave import evaluate
from pave.serve import facts
from pave.serve.desk import Desk, Put, Stopped
from pave.serve.reading import Limits, Refused
from pave.serve.session import Session

PAGE = Path(__file__).parent.parent / "doc/serve.md"

pytest_plugins = ["serving_fixtures"]


@pytest.fixture
def page(served: Served, tmp_path: Path) -> Iterator[Any]:
    """The page's logic on a model of its own."""
    from pave.serve.page import Page

    desk = Desk(tmp_path, 1)
    yield Page(Session(*evaluate.load_model(served.ckpt, None, device="cpu")), desk, Limits(new_tokens=6))
    desk.close()


def test_ask_follow_up_and_switch(served: Served, page: Any) -> None:
    from pave.serve.page import Talk

    plain = served.ask(base=True, max_new_tokens=6).json()
    *_, (talk, chat, base, used, cleared) = page.ask(Talk(), QUESTION, True, ["audio"], str(served.video), None)
    assert [turn["content"] for turn in chat] == [QUESTION, plain["answer"]["text"]]
    assert [turn["content"] for turn in base] == [QUESTION, plain["base"]["text"]]
    assert "audio: from test_00000.mp4, 7 steps" in used
    assert cleared == ""
    *_, (talk, chat, base, _, _) = page.ask(talk, "And now?", False, ["audio"], str(served.video), None)
    follow = served.ask(question="And now?", history=[[QUESTION, plain["answer"]["text"]]], max_new_tokens=6).json()
    assert chat[-1]["content"] == follow["answer"]["text"]
    assert len(base) == 2
    *_, (_, off, _, _, _) = page.ask(Talk(), QUESTION, False, [], str(served.video), None)
    assert off[-1]["content"] == plain["base"]["text"]


def test_a_new_video_is_read_at_once(served: Served, page: Any, tmp_path: Path) -> None:
    import gradio

    from pave.serve.page import Talk

    request = SimpleNamespace(session_hash="one")
    *_, (talk, chat, base, used) = page.look(request, str(served.video), None)
    assert (talk, chat, base) == (Talk(), [], [])
    assert "4 frames are looked at" in used
    assert list(page.look(request, None, None)) == [(Talk(), [], [], "")]
    shown = []
    with pytest.raises(gradio.Error, match="cut off"):
        shown += list(page.look(request, str(cut(served.video)), None))
    with pytest.raises(gradio.Error, match="drop a video first"):
        list(page.ask(Talk(), QUESTION, True, [], None, None))
    with pytest.raises(gradio.Error, match="no question"):
        list(page.ask(Talk(), " ", True, [], str(served.video), None))


def test_files_go_with_the_last_page_that_has_them(page: Any, tmp_path: Path) -> None:
    files = [tmp_path / name / "clip.mp4" for name in ("mine", "shared", "example")]
    for file in files:
        file.parent.mkdir()
        file.write_bytes(b"")
    mine, shared, example = map(str, files)
    page.kept = {example}
    one, two = SimpleNamespace(session_hash="one"), SimpleNamespace(session_hash="two")
    page._see = lambda *_: SimpleNamespace(facts=facts.Facts("", None, 0, [], {}))
    for request, file in ((one, mine), (one, shared), (two, shared), (one, example)):
        list(page.look(request, file, None))
    page.forget(one)
    assert [file.exists() for file in files] == [False, True, True]
    page.forget(two)
    assert [file.exists() for file in files] == [False, False, True]


def call(served: Served, path: str) -> list[Any]:
    """What the page's own API says to a video at a path."""
    config = served.client.get("/config").json()
    inputs = next(d for d in config["dependencies"] if len(d["inputs"]) == 2)
    video = {"path": path, "meta": {"_type": "gradio.FileData"}}
    body = {"data": [video, None], "fn_index": inputs["id"], "session_hash": "session"}
    assert served.client.post("/gradio_api/queue/join", json=body).status_code == 200
    said = []
    with served.client.stream("GET", "/gradio_api/queue/data", params={"session_hash": "session"}) as stream:
        for line in stream.iter_lines():
            if line.startswith("data:"):
                said.append(json.loads(line[5:]))
    return said


def test_the_page_opens_what_was_uploaded_and_nothing_else(served: Served) -> None:
    assert served.client.get("/").status_code == 200
    assert served.client.get("/config").json()["title"] == "pave"
    sent = served.client.post("/gradio_api/upload", files={"files": ("../../a.mp4", served.video.read_bytes())})
    [path] = sent.json()
    assert Path(path).is_relative_to(served.folder / "gradio")
    last = call(served, path)[-2]
    assert "4 frames are looked at" in json.dumps(last)
    before = set(served.folder.rglob("*"))
    for other in (served.ckpt / "pave.yaml", "/etc/passwd", f"{served.folder}/gradio/../../x", "http://127.0.0.1:9/a"):
        last = call(served, str(other))[-2]
        assert last["success"] is False
        assert "neither links nor paths are opened" in json.dumps(last)
    assert set(served.folder.rglob("*")) == before
    assert served.client.get("/gradio_api/file=/etc/passwd").status_code == 403
    assert served.client.get(f"/gradio_api/file={served.ckpt}/pave.yaml").status_code == 403
    big = served.client.post("/gradio_api/upload", files={"files": ("a.mp4", b"x" * 1_500_000)})
    assert big.status_code == 413


def test_a_desk_refuses_and_forgets_who_left(tmp_path: Path) -> None:
    pytest.importorskip("fastapi")
    desk = Desk(tmp_path, 0)
    slot = desk.slot()
    with pytest.raises(Refused, match="1 requests are being served"):
        desk.slot()
    slot.close()
    slot.close()
    slot = desk.slot()
    with pytest.raises(Refused):
        desk.slot()

    def endless(put: Put, stopped: Stopped) -> None:
        while not stopped():
            put(("answer", "word"))
            time.sleep(0.01)

    from pave.serve.api import _lines
    from pave.serve.plain import Stream

    job = desk.start(slot, endless)
    events = iter(job)

    async def hang_up() -> None:
        lines = _lines(job, next(events), events, Stream({}))
        assert "word" in await anext(lines)
        await lines.aclose()

    asyncio.run(hang_up())
    desk.close()
    assert not slot.folder.exists()
    desk.slot().close()


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_as_a_process_it_answers_as_documented_and_leaves_nothing(served: Served, tmp_path: Path) -> None:
    argv = ["-m", "pave.cli", "serve", "--ckpt", str(served.ckpt), "--port", "0", "--device", "cpu"]
    files, temporary = tmp_path / "files", tmp_path / "temporary"
    files.mkdir()
    temporary.mkdir()
    shutil.copy(served.video, files / "clip.mp4")
    write_clip(files / "other.wav", 0, None, tone(5), audio_codec="pcm_s16le")
    lines = [line for line in PAGE.read_text().splitlines() if "curl " in line and "http://" in line]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    process = subprocess.Popen([sys.executable, *argv], stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    try:
        address = next(line.strip() for line in process.stderr if line.startswith("http://127.0.0.1:"))
        said = []
        for line in lines:
            command = line.replace("http://127.0.0.1:7860", address).replace("curl ", "curl -s ")
            done = subprocess.run(
                ["bash", "-c", command], capture_output=True, text=True, cwd=files, timeout=60, check=True
            )
            said.append(done.stdout)
        assert any(temporary.iterdir())
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert not list(temporary.iterdir())
    assert len(said) == 8
    assert not any('"error"' in text for text in said)
    assert json.loads(said[0])["answer"]["text"] != json.loads(said[0])["base"]["text"]
    assert json.loads(said[1])["facts"]["sides"]["audio"]["steps"] == 4
    assert json.loads(said[2])["answer"]["patches"] == {}
    assert said[3].endswith('data: {"done": ["answer"]}\n\n')
    assert json.loads(said[4])["answer"]["text"]
    assert [model["id"] for model in json.loads(said[5])["data"]] == ["pave", "pave-base"]
    assert said[6].endswith("data: [DONE]\n\n")
    assert json.loads(said[7])["facts"]["sides"]["audio"]["steps"] == 4
