"""The server, driven as clients do: answers, patches, streams, failures, and nothing left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.media_files import tone, write_clip
from helpers.server_client import NEW_TOKENS, QUESTION, Served, data_url, error, events
from helpers.tiny_model import SIDE_DIM

from pave.checkpoints import load
from pave.inference import demo
from pave.inference.session import AnswerRequest, Session

pytest_plugins = ["helpers.server_client"]


def test_both_answers_are_those_of_the_command_line(served: Served) -> None:
    response = served.ask(base=True)
    assert response.status_code == 200, response.text
    body = response.json()
    for name, base_only in (("answer", False), ("base", True)):
        model, config = load.load_model(served.ckpt, None, base_only=base_only, device="cpu")
        text = demo.answer(model, config, served.video, QUESTION, {}, max_new_tokens=NEW_TOKENS)
        assert body[name]["text"] == text

    assert body["answer"]["text"] != body["base"]["text"]
    assert (body["answer"]["patches"], body["base"]["patches"]) == ({"audio": 1.0}, {})
    assert body["facts"]["info"]["seconds"] == 8
    assert body["facts"]["sides"]["audio"]["windows"] == [[0, 2], [2, 4], [4, 6], [6, 7]]
    form = served.form({"video": served.video.open("rb")}, base="true", max_new_tokens=str(NEW_TOKENS))
    assert form.json() == body
    assert not served.request_files()


def test_switching_patches_changes_this_answer_and_no_other(served: Served) -> None:
    patched = served.ask().json()["answer"]
    bare = served.ask(patches=[]).json()["answer"]
    assert patched["text"] != bare["text"]
    assert served.ask().json()["answer"] == patched
    assert served.ask(patches=[]).json()["answer"] == bare
    assert "did you mean 'audio'" in error(served.ask(patches=["audoi"]), 400)


def test_a_follow_up_question_on_both_endpoints(served: Served) -> None:
    first = served.ask().json()["answer"]
    follow_up = served.ask(question="Are you sure?", history=[[QUESTION, first["text"]]]).json()["answer"]
    session = Session(*load.load_model(served.ckpt, None, device="cpu"))
    request = AnswerRequest("Are you sure?", ((QUESTION, first["text"]),), max_new_tokens=NEW_TOKENS)
    assert follow_up["text"] == session.ask(session.load_video(served.video, {}), request).text
    assert follow_up["prompt_tokens"] > first["prompt_tokens"]

    video = {"type": "video_url", "video_url": {"url": data_url(served.video)}}
    messages = [
        {"role": "user", "content": [video, {"type": "text", "text": QUESTION}]},
        {"role": "assistant", "content": first["text"]},
        {"role": "user", "content": "Are you sure?"},
    ]
    chat = served.chat(messages=messages).json()
    assert chat["choices"][0]["message"]["content"] == follow_up["text"]
    assert chat["usage"]["prompt_tokens"] == follow_up["prompt_tokens"]


def test_a_stream_gives_the_same_piece_by_piece(served: Served) -> None:
    body = served.ask(base=True).json()
    stream = events(served.ask(base=True, stream=True))
    assert stream[0] == {"facts": body["facts"]}
    assert stream[-1] == {"done": ["answer", "base"]}
    for name in ("answer", "base"):
        pieces = [event[name]["piece"] for event in stream if "piece" in event.get(name, {})]
        assert len(pieces) > 1
        assert "".join(pieces).strip() == body[name]["text"]
        assert {name: body[name]} in stream


def test_as_openai_clients_ask(served: Served) -> None:
    expected = served.ask(base=True).json()
    body = served.chat().json()
    choice = body["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": expected["answer"]["text"]}
    assert choice["finish_reason"] == ("stop" if expected["answer"]["finished"] else "length")
    assert body["usage"]["prompt_tokens"] == expected["answer"]["prompt_tokens"]
    assert body["facts"] == expected["facts"]

    base = served.chat(model="pave-base").json()
    assert base["choices"][0]["message"]["content"] == expected["base"]["text"]
    assert base["model"] == "pave-base"
    assert served.chat(patches=[]).json()["choices"] == base["choices"]

    response = served.chat(stream=True)
    assert response.text.endswith("data: [DONE]\n\n")
    stream = events(response)
    deltas = [event["choices"][0]["delta"].get("content", "") for event in stream]
    assert "".join(deltas).strip() == choice["message"]["content"]
    assert stream[-1]["choices"][0]["finish_reason"] == choice["finish_reason"]
    assert len({event["id"] for event in stream}) == 1
    ids = [model["id"] for model in served.client.get("/v1/models").json()["data"]]
    assert ids == ["pave", "pave-base"]


def test_a_video_without_sound_is_answered_and_the_facts_say_so(served: Served, tmp_path: Path) -> None:
    body = served.ask(video=data_url(write_clip(tmp_path / "mute.mp4", 50))).json()
    assert body["facts"]["sides"]["audio"]["absent"] == "video: has no sound track; give a file with one"
    assert body["facts"]["info"]["has_audio"] is False
    assert body["answer"]["text"]


def test_a_file_for_a_side_channel(served: Served, tmp_path: Path) -> None:
    sound = write_clip(tmp_path / "tone.wav", 0, None, tone(5), audio_codec="pcm_s16le")
    facts = served.ask(sides={"audio": data_url(sound, "audio/wav")}).json()["facts"]
    assert (facts["sides"]["audio"]["source"], facts["sides"]["audio"]["steps"]) == ("audio", 4)
    assert served.form({"video": served.video.open("rb"), "audio": sound.open("rb")}).json()["facts"] == facts
    features = served.video.parents[1] / "features/audio/test_00000.safetensors"
    facts = served.ask(sides={"audio": data_url(features, "application/octet-stream")}).json()["facts"]
    assert facts["sides"]["audio"]["seconds"] is None

    torch.save(torch.zeros(4, 1, SIDE_DIM), tmp_path / "official.pt")
    (tmp_path / "damaged").write_bytes(b"\x05\0\0\0\0\0\0\0{}}}}")
    for file, status, message in (
        # A video may lack a side-channel, a file that was sent for it must hold it.
        (write_clip(tmp_path / "mute.mp4", 50), 400, "has no sound track"),
        # A file of torch is a zip, and none that is unpacked.
        (tmp_path / "official.pt", 415, "expected only .jpg"),
        (tmp_path / "damaged", 400, "not a whole safetensors file"),
    ):
        assert message in error(served.ask(sides={"audio": data_url(file)}), status)


def test_a_failure_inside_is_reported_and_the_next_request_is_served(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError("secret")

    with monkeypatch.context() as patched:
        patched.setattr(Session, "ask", fail)
        assert "secret" not in error(served.ask(), 500)
        assert "log says why" in events(served.ask(stream=True))[-1]["error"]["message"]
    assert served.ask().status_code == 200
    assert not served.request_files()
