"""The page: what its buttons do, what it opens and what it deletes; and the queue behind it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.media_files import cut
from helpers.server_client import QUESTION, SIDES, Served

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

    queue = JobQueue(tmp_path, 1)
    yield Page(Session(*load.load_model(served.ckpt, None, device="cpu")), queue, Limits(max_new_tokens=6))
    queue.close()


@pytest.fixture
def empty_chat(page: Any) -> Any:
    from pave.inference.server.web_page import ChatState

    return ChatState()


def test_ask_follow_up_and_switch(served: Served, page: Any, empty_chat: Any) -> None:
    video = str(served.video)
    expected = served.ask(base=True, max_new_tokens=6).json()
    *_, (state, chat, base, used, cleared) = page.answer(empty_chat, QUESTION, True, ["audio"], video, None)
    assert [turn["content"] for turn in chat] == [QUESTION, expected["answer"]["text"]]
    assert [turn["content"] for turn in base] == [QUESTION, expected["base"]["text"]]
    assert "audio: from test_00000.mp4, 7 steps" in used
    assert cleared == ""

    *_, (_, chat, base, _, _) = page.answer(state, "And now?", False, ["audio"], video, None)
    history = [[QUESTION, expected["answer"]["text"]]]
    follow_up = served.ask(question="And now?", history=history, max_new_tokens=6).json()
    assert chat[-1]["content"] == follow_up["answer"]["text"]
    assert len(base) == 2

    *_, (_, chat, _, used, _) = page.answer(empty_chat, QUESTION, False, [], video, None)
    assert chat[-1]["content"] == expected["base"]["text"]
    assert "audio: switched off; from test_00000.mp4" in used
    assert "o frame" not in used


def test_a_new_video_is_read_at_once(served: Served, page: Any, empty_chat: Any) -> None:
    import gradio

    request = SimpleNamespace(session_hash="one")
    *_, (state, chat, base, used) = page.load_video(request, str(served.video), None)
    assert (state, chat, base) == (empty_chat, [], [])
    assert "4 frames are looked at" in used
    assert list(page.load_video(request, None, None)) == [(empty_chat, [], [], "")]
    for outputs, message in (
        (page.load_video(request, str(cut(served.video)), None), "cut off"),
        (page.answer(empty_chat, QUESTION, True, [], None, None), "drop a video first"),
        (page.answer(empty_chat, " ", True, [], str(served.video), None), "no question"),
    ):
        with pytest.raises(gradio.Error, match=message):
            list(outputs)


def test_files_go_with_the_last_page_that_has_them(page: Any, tmp_path: Path) -> None:
    files = [tmp_path / name / "clip.mp4" for name in ("single", "shared", "example")]
    for file in files:
        file.parent.mkdir()
        file.write_bytes(b"")
    single, shared, example = map(str, files)

    page.example_files = {example}
    page._load = lambda *_: SimpleNamespace(provenance=provenance.Provenance("", None, 0, [], {}))
    first, second = SimpleNamespace(session_hash="first"), SimpleNamespace(session_hash="second")
    for request, file in ((first, single), (first, shared), (second, shared), (first, example)):
        list(page.load_video(request, file, None))

    page.close(first)
    assert [file.exists() for file in files] == [False, True, True]
    page.close(second)
    assert [file.exists() for file in files] == [False, False, True]


def call(served: Served, path: str) -> dict[str, Any]:
    """The outcome of the page's own API for a video at a path."""
    dependencies = served.client.get("/config").json()["dependencies"]
    files = [{"path": path, "meta": {"_type": "gradio.FileData"}}, *[None] * (1 + len(SIDES))]
    function = next(dependency["id"] for dependency in dependencies if len(dependency["inputs"]) == len(files))
    body = {"data": files, "fn_index": function, "session_hash": "session"}
    assert served.client.post("/gradio_api/queue/join", json=body).status_code == 200
    with served.client.stream("GET", "/gradio_api/queue/data", params={"session_hash": "session"}) as stream:
        messages = [json.loads(line[5:]) for line in stream.iter_lines() if line.startswith("data:")]
    return messages[-2]


def test_the_page_opens_uploads_and_nothing_else(served: Served) -> None:
    assert served.client.get("/").status_code == 200
    assert served.client.get("/config").json()["title"] == "pave"
    upload = served.client.post("/gradio_api/upload", files={"files": ("../../a.mp4", served.video.read_bytes())})
    [path] = upload.json()
    assert Path(path).is_relative_to(served.folder / "gradio")
    assert "4 frames are looked at" in json.dumps(call(served, path))

    before = set(served.folder.rglob("*"))
    for other in (served.ckpt / "pave.yaml", "/etc/passwd", f"{served.folder}/gradio/../../x", "http://127.0.0.1:9/a"):
        outcome = call(served, str(other))
        assert outcome["success"] is False
        assert "neither links nor paths are opened" in json.dumps(outcome)
    assert set(served.folder.rglob("*")) == before
    for file in ("/etc/passwd", f"{served.ckpt}/pave.yaml"):
        assert served.client.get(f"/gradio_api/file={file}").status_code == 403
    large = served.client.post("/gradio_api/upload", files={"files": ("a.mp4", b"x" * 1_500_000)})
    assert large.status_code == 413


def test_a_queue_refuses_too_many_and_stops_for_a_client_that_hangs_up(tmp_path: Path) -> None:
    pytest.importorskip("fastapi")
    from pave.inference.server import answer_api, endpoints

    queue = JobQueue(tmp_path, 0)
    queue_slot = queue.slot()
    with pytest.raises(RequestRefused, match="1 requests are being served"):
        queue.slot()
    queue_slot.close()
    queue_slot.close()  # gives its place back once
    queue_slot = queue.slot()
    with pytest.raises(RequestRefused):
        queue.slot()

    def endless(emit: Emit, is_stopped: IsStopped) -> None:
        while not is_stopped():
            emit(("answer", "word"))

    job = queue.start(queue_slot, endless)
    events = iter(job)

    async def hang_up() -> None:
        lines = endpoints._sse_lines(job, next(events), events, answer_api.AnswerStream({}))
        assert "word" in await anext(lines)
        await lines.aclose()

    asyncio.run(hang_up())
    queue.close()
    assert not queue_slot.folder.exists()
    queue.slot().close()
