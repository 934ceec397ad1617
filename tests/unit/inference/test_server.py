"""The server, driven as clients do: answers, patches, streams, many at once, and nothing left behind."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.media_files import tone, write_clip
from helpers.server_client import QUESTION, TOKENS, WAITING, Served, data_url, error, events
from helpers.tiny_model import SIDE_DIM

from pave.checkpoints import load
from pave.inference import demo
from pave.inference.session import AnswerRequest, Session

pytest_plugins = ["helpers.server_client"]


def test_both_answers_are_those_of_the_command_line(served: Served) -> None:
    ours = served.ask(base=True)
    assert ours.status_code == 200, ours.text
    body = ours.json()
    model, config = load.load_model(served.ckpt, None, device="cpu")
    assert body["answer"]["text"] == demo.answer(model, config, served.video, QUESTION, {}, max_new_tokens=TOKENS)
    bare, bare_config = load.load_model(served.ckpt, None, base_only=True, device="cpu")
    assert body["base"]["text"] == demo.answer(bare, bare_config, served.video, QUESTION, {}, max_new_tokens=TOKENS)
    assert body["answer"]["text"] != body["base"]["text"]
    assert body["answer"]["patches"] == {"audio": 1.0}
    assert body["base"]["patches"] == {}
    assert body["facts"]["info"]["seconds"] == 8
    assert body["facts"]["sides"]["audio"]["windows"] == [[0, 2], [2, 4], [4, 6], [6, 7]]
    upload = served.form({"video": served.video.open("rb")}, base="true", max_new_tokens=str(TOKENS))
    assert upload.json() == body
    assert not served.left()


def test_switching_patches_changes_this_answer_and_no_other(served: Served) -> None:
    on = served.ask(patches=["audio"]).json()["answer"]
    off = served.ask(patches=[]).json()["answer"]
    assert on["text"] != off["text"]
    assert served.ask().json()["answer"] == on
    assert served.ask(patches=[]).json()["answer"] == off
    assert "did you mean 'audio'" in error(served.ask(patches=["audoi"]), 400)


def test_a_question_that_follows_up(served: Served) -> None:
    first = served.ask().json()["answer"]
    history = [[QUESTION, first["text"]]]
    second = served.ask(question="And what shape jumped?", history=history).json()["answer"]
    model, config = load.load_model(served.ckpt, None, device="cpu")
    session = Session(model, config)
    ask = AnswerRequest("And what shape jumped?", ((QUESTION, first["text"]),), max_new_tokens=TOKENS)
    assert second["text"] == session.ask(session.load_video(served.video, {}), ask).text
    assert second["prompt_tokens"] > first["prompt_tokens"]


def test_a_stream_says_the_same_piece_by_piece(served: Served) -> None:
    whole = served.ask(base=True).json()
    stream = events(served.ask(base=True, stream=True))
    assert stream[0] == {"facts": whole["facts"]}
    assert stream[-1] == {"done": ["answer", "base"]}
    for name in ("answer", "base"):
        pieces = [event[name]["piece"] for event in stream if "piece" in event.get(name, {})]
        assert len(pieces) > 1
        assert "".join(pieces).strip() == whole[name]["text"]
        assert {name: whole[name]} in stream


def test_as_openai_clients_ask(served: Served) -> None:
    plain = served.ask(base=True).json()
    body = served.chat().json()
    message = body["choices"][0]["message"]
    assert message == {"role": "assistant", "content": plain["answer"]["text"]}
    assert body["choices"][0]["finish_reason"] == ("stop" if plain["answer"]["finished"] else "length")
    assert body["usage"]["prompt_tokens"] == plain["answer"]["prompt_tokens"]
    assert body["facts"] == plain["facts"]
    base = served.chat(model="pave-base").json()
    assert base["choices"][0]["message"]["content"] == plain["base"]["text"]
    assert base["model"] == "pave-base"
    assert served.chat(patches=[]).json()["choices"] == base["choices"]
    stream = events(served.chat(stream=True))
    deltas = [event["choices"][0]["delta"].get("content", "") for event in stream]
    assert "".join(deltas).strip() == message["content"]
    assert stream[-1]["choices"][0]["finish_reason"] == body["choices"][0]["finish_reason"]
    assert len({event["id"] for event in stream}) == 1
    assert served.chat(stream=True).text.endswith("data: [DONE]\n\n")
    ids = [model["id"] for model in served.client.get("/v1/models").json()["data"]]
    assert ids == ["pave", "pave-base"]


def test_a_chat_that_follows_up(served: Served) -> None:
    video = {"type": "video_url", "video_url": {"url": data_url(served.video)}}
    turns = [
        {"role": "user", "content": [video, {"type": "text", "text": QUESTION}]},
        {"role": "assistant", "content": "bell"},
        {"role": "user", "content": "Are you sure?"},
    ]
    got = served.client.post("/v1/chat/completions", json={"messages": turns, "max_tokens": TOKENS}).json()
    plain = served.ask(question="Are you sure?", history=[[QUESTION, "bell"]]).json()["answer"]
    assert got["choices"][0]["message"]["content"] == plain["text"]
    assert got["usage"]["prompt_tokens"] == plain["prompt_tokens"]


def test_a_file_without_sound_is_answered_and_it_says_so(served: Served, tmp_path: Path) -> None:
    mute = write_clip(tmp_path / "mute.mp4", 50)
    body = served.ask(video=data_url(mute)).json()
    assert body["facts"]["sides"]["audio"]["absent"] == "video: has no sound track; give a file with one"
    assert body["facts"]["info"]["has_audio"] is False
    assert body["answer"]["text"]


def test_a_side_channel_of_its_own(served: Served, tmp_path: Path) -> None:
    sound = write_clip(tmp_path / "tone.wav", 0, None, tone(5), audio_codec="pcm_s16le")
    other = served.ask(sides={"audio": data_url(sound, "audio/wav")}).json()
    assert other["facts"]["sides"]["audio"]["source"] == "audio"
    assert other["facts"]["sides"]["audio"]["steps"] == 4
    assert served.form({"video": served.video.open("rb"), "audio": sound.open("rb")}).json()["facts"] == other["facts"]
    features = served.video.parents[1] / "features/audio/test_00000.safetensors"
    ready = served.ask(sides={"audio": data_url(features, "application/octet-stream")}).json()
    assert ready["facts"]["sides"]["audio"]["seconds"] is None
    # What the video lacks is left out, what was sent must be usable.
    assert "has no sound track" in error(
        served.ask(sides={"audio": data_url(write_clip(tmp_path / "mute.mp4", 50))}), 400
    )
    torch.save(torch.zeros(4, 1, SIDE_DIM), tmp_path / "published.pt")
    # A file of torch is a zip, and none that is unpacked.
    assert "expected only .jpg" in error(served.ask(sides={"audio": data_url(tmp_path / "published.pt")}), 415)
    (tmp_path / "odd").write_bytes(b"\x05\0\0\0\0\0\0\0{}}}}")
    assert "not a whole safetensors file" in error(served.ask(sides={"audio": data_url(tmp_path / "odd")}), 400)


def test_fifty_at_once_are_answered_or_refused(served: Served) -> None:
    expected = served.ask().json()

    def one(number: int) -> Any:
        return served.ask(patches=None if number % 2 else [])

    resident = memory()
    with ThreadPoolExecutor(50) as clients:
        got = list(clients.map(one, range(50)))
    answered = [(i, r) for i, r in enumerate(got) if r.status_code == 200]
    refused = [r for r in got if r.status_code != 200]
    assert len(answered) > WAITING
    assert refused
    for response in refused:
        assert f"{WAITING + 1} requests are being served or wait" in error(response, 429)
        assert int(response.headers["retry-after"]) >= 1
    assert {r.json()["answer"]["text"] == expected["answer"]["text"] for i, r in answered if i % 2} == {True}
    assert {r.json()["answer"]["text"] == expected["answer"]["text"] for i, r in answered if not i % 2} == {False}
    assert served.ask().json() == expected
    assert not served.left()
    assert memory() - resident < 100 << 20


def memory() -> int:
    """Bytes resident."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_failure_of_ours_is_said_and_the_next_is_served(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("secret")

    with monkeypatch.context() as patched:
        patched.setattr(Session, "ask", broken)
        assert "secret" not in error(served.ask(), 500)
        assert "log says why" in events(served.ask(stream=True))[-1]["error"]["message"]
    assert served.ask().status_code == 200
    assert not served.left()
