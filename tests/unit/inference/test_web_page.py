"""The page: what its buttons do, what it opens and what it deletes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.media_files import cut
from helpers.server_client import QUESTION, Served

from pave.checkpoints import load
from pave.inference import provenance
from pave.inference.limits import Limits, RequestRefused
from pave.inference.server.job_queue import Emit, IsStopped, JobQueue
from pave.inference.session import Session

pytest_plugins = ["helpers.server_client"]


@pytest.fixture
def page(served: Served, tmp_path: Path) -> Iterator[Any]:
    """The page's logic on a model of its own."""
    from pave.inference.server.web_page import Page

    desk = JobQueue(tmp_path, 1)
    yield Page(Session(*load.load_model(served.ckpt, None, device="cpu")), desk, Limits(max_new_tokens=6))
    desk.close()


def test_ask_follow_up_and_switch(served: Served, page: Any) -> None:
    from pave.inference.server.web_page import ChatState

    plain = served.ask(base=True, max_new_tokens=6).json()
    *_, (talk, chat, base, used, cleared) = page.ask(ChatState(), QUESTION, True, ["audio"], str(served.video), None)
    assert [turn["content"] for turn in chat] == [QUESTION, plain["answer"]["text"]]
    assert [turn["content"] for turn in base] == [QUESTION, plain["base"]["text"]]
    assert "audio: from test_00000.mp4, 7 steps" in used
    assert cleared == ""
    *_, (talk, chat, base, _, _) = page.ask(talk, "And now?", False, ["audio"], str(served.video), None)
    follow = served.ask(question="And now?", history=[[QUESTION, plain["answer"]["text"]]], max_new_tokens=6).json()
    assert chat[-1]["content"] == follow["answer"]["text"]
    assert len(base) == 2
    *_, (_, off, _, used, _) = page.ask(ChatState(), QUESTION, False, [], str(served.video), None)
    assert off[-1]["content"] == plain["base"]["text"]
    assert "audio: switched off; from test_00000.mp4" in used
    assert "o frame" not in used


def test_a_new_video_is_read_at_once(served: Served, page: Any, tmp_path: Path) -> None:
    import gradio

    from pave.inference.server.web_page import ChatState

    request = SimpleNamespace(session_hash="one")
    *_, (talk, chat, base, used) = page.look(request, str(served.video), None)
    assert (talk, chat, base) == (ChatState(), [], [])
    assert "4 frames are looked at" in used
    assert list(page.look(request, None, None)) == [(ChatState(), [], [], "")]
    shown = []
    with pytest.raises(gradio.Error, match="cut off"):
        shown += list(page.look(request, str(cut(served.video)), None))
    with pytest.raises(gradio.Error, match="drop a video first"):
        list(page.ask(ChatState(), QUESTION, True, [], None, None))
    with pytest.raises(gradio.Error, match="no question"):
        list(page.ask(ChatState(), " ", True, [], str(served.video), None))


def test_files_go_with_the_last_page_that_has_them(page: Any, tmp_path: Path) -> None:
    files = [tmp_path / name / "clip.mp4" for name in ("mine", "shared", "example")]
    for file in files:
        file.parent.mkdir()
        file.write_bytes(b"")
    mine, shared, example = map(str, files)
    page.kept = {example}
    one, two = SimpleNamespace(session_hash="one"), SimpleNamespace(session_hash="two")
    page._see = lambda *_: SimpleNamespace(facts=provenance.Provenance("", None, 0, [], {}))
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
    desk = JobQueue(tmp_path, 0)
    slot = desk.slot()
    with pytest.raises(RequestRefused, match="1 requests are being served"):
        desk.slot()
    slot.close()
    slot.close()
    slot = desk.slot()
    with pytest.raises(RequestRefused):
        desk.slot()

    def endless(put: Emit, stopped: IsStopped) -> None:
        while not stopped():
            put(("answer", "word"))
            time.sleep(0.01)

    from pave.inference.server.answer_api import Stream
    from pave.inference.server.endpoints import _lines

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
