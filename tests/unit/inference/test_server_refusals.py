"""Requests that the server refuses: the error, and that no file of them stays."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from helpers.media_files import BUNNY, cut, tone, write_clip
from helpers.server_client import Served, data_url, error
from helpers.tiny_model import SIDE_DIM, TinySetup

from pave.inference.limits import Limits, RequestRefused
from pave.inference.untrusted_media import SideRequest, check_media, checked_side_file, guarded_reader
from pave.media import feature_files
from pave.media.frame_sampling import FrameSampling

pytest_plugins = ["helpers.server_client"]


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"model": "gpt"}, 404, "there are 'pave' and 'pave-base'"),
        ({"temperature": 0.7}, 400, "answers are greedy"),
        ({"tools": []}, 400, "unknown field 'tools'"),
        ({"messages": [{"role": "system", "content": "Be nice."}]}, 400, "no video"),
        ({"messages": [], "video": "VIDEO"}, 400, "expected a question at the end"),
        ({"messages": [{"role": "system", "content": "Be nice."}], "video": "VIDEO"}, 400, "expected role 'user'"),
        ({"messages": [{"role": "user", "content": [7]}], "video": "VIDEO"}, 400, "expected text, or parts"),
        ({"messages": [{"role": "user"}], "video": "VIDEO"}, 400, "expected text, or parts"),
        ({"messages": [{"role": "user", "content": 5}]}, 400, "no video"),
        ({"max_tokens": 17}, 400, "expected 1 to 16"),
    ],
)
def test_chats_that_are_not_as_documented(served: Served, fields: dict[str, Any], status: int, message: str) -> None:
    if "video" in fields:
        fields = {**fields, "video": data_url(served.video)}
    assert message in error(served.chat(**fields), status)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"question": ""}, "no question"),
        ({"question": 3}, "expected text, found int"),
        ({"question": "What is <video>?"}, "means something to the model"),
        ({"history": [["a"]]}, "expected a list of [question, answer]"),
        ({"history": "a"}, "expected a list"),
        ({"stream": "yes"}, "expected true or false"),
        ({"max_new_tokens": 0}, "expected 1 to 16"),
        ({"max_new_tokens": True}, "expected a whole number"),
        ({"patches": [1]}, "expected a list of names"),
        ({"paches": []}, "did you mean 'patches'"),
        ({"video": None}, "expected data:"),
        ({"video": "/etc/passwd"}, "links and paths are not opened"),
        ({"video": "file:///etc/passwd"}, "links and paths are not opened"),
        ({"video": "http://127.0.0.1/a.mp4"}, "links and paths are not opened"),
        ({"video": {"path": "/etc/passwd"}}, "links and paths are not opened"),
        ({"video": "data:video/mp4;base64,!"}, "not valid base64"),
        ({"sides": {"audio": "/etc/passwd"}}, "links and paths are not opened"),
        ({"sides": {"../../audio": "data:;base64,AAAA"}}, "not a side-channel of this model"),
        ({"sides": []}, "expected an object"),
    ],
)
def test_requests_that_are_not_as_documented(served: Served, fields: dict[str, Any], message: str) -> None:
    assert message in error(served.ask(**fields), 400)
    assert not served.request_files()


@pytest.mark.parametrize(
    ("body", "content_type", "status", "message"),
    [
        (b"{", "application/json", 400, "not valid JSON"),
        (b"[]", "application/json", 400, "expected a JSON object"),
        (b"[" * 100_000, "application/json", 400, "not valid JSON"),
        (b"x", "text/plain", 415, "content type 'text/plain'"),
        (b"--x--", "multipart/form-data; boundary=x", 400, "no video"),
        (b"", "multipart/form-data", 400, "not a readable form"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_bodies_that_are_not_as_documented(
    served: Served, body: bytes, content_type: str, status: int, message: str
) -> None:
    response = served.client.post("/v1/answer", content=body, headers={"content-type": content_type})
    assert message in error(response, status)
    assert not served.request_files()


def test_other_host_names_are_refused(served: Served) -> None:
    assert served.client.get("/v1/models", headers={"host": "evil.example"}).status_code == 400


def test_files_that_are_refused(served: Served, tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("no video at all")
    for file, status, message in (
        (text, 415, "no video or sound"),
        (cut(served.video), 415, "cut off"),
        (write_clip(tmp_path / "tone.wav", 0, None, tone(3), audio_codec="pcm_s16le"), 400, "has no video track"),
        (write_clip(tmp_path / "long.mp4", 2, times=[0, 21_000]), 413, "at most 20 s"),
        (write_clip(tmp_path / "picture.gif", 2, "gif"), 415, "is gif"),
        (write_clip(tmp_path / "wide.mp4", 1, size=(8192, 1024)), 413, "at most 8294400"),
    ):
        assert message in error(served.ask(video=data_url(file)), status)
    assert served.ask().status_code == 200
    assert not served.request_files()


def test_a_list_of_files_opens_none_of_them(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "secret.mp4", 50)
    (tmp_path / "video").write_text("ffconcat version 1.0\nfile secret.mp4\n")
    with av.open(str(tmp_path / "video")) as container:
        assert container.streams.video[0].codec_context.width == 96  # so it would, elsewhere
    with pytest.raises(RequestRefused, match="no video or sound"):
        check_media(tmp_path / "video", Limits())
    check_media(clip, Limits())


def crash(path: Path) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def test_a_decoder_leaves_no_files_and_may_crash_or_hang(
    tiny_setup: TinySetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = tiny_setup.data / "videos/test_00000.mp4"
    features = tiny_setup.data / "features/audio/test_00000.safetensors"
    frames = FrameSampling(4)
    os.mkfifo(tmp_path / "endless")
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "empty"))
    with guarded_reader(Limits()) as read:
        # Through multiprocessing, tensors would come by a socket in a folder that a kill leaves behind.
        request = SideRequest(features, partial(feature_files.read, extractors=["imagebind_audio"]), None)
        assert read(video, frames, {"audio": request}).sides["audio"].x.shape == (5, 1, SIDE_DIM)
        assert not list((tmp_path / "empty").iterdir())

        with pytest.raises(RequestRefused, match="decoding it failed"):
            read(video, frames, {"audio": SideRequest(video, crash, crash, from_video=True)})
        assert len(read(video, frames, {}).clip.frames) == 4
    with guarded_reader(Limits(decode_seconds=1)) as read, pytest.raises(RequestRefused, match="took over 1 s"):
        read(tmp_path / "endless", frames, {})


def test_official_features_are_refused(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "features.pt", _use_new_zipfile_serialization=False)
    with (
        pytest.raises(RequestRefused, match=r"features are taken as \.safetensors"),
        checked_side_file(tmp_path / "features.pt", Limits()),
    ):
        pass


def test_what_is_too_large(served: Served) -> None:
    assert "files of 1.0 MB, at most 1 MB" in error(served.form({"video": BUNNY.open("rb")}), 413)
    big = b"x" * 3_000_000
    assert "send a smaller file" in error(served.form({"video": big}), 413)

    def chunks() -> Iterator[bytes]:
        yield b'--x\r\ncontent-disposition: form-data; name="video"; filename="a.mp4"\r\n\r\n'
        for _ in range(30):
            yield big[:100_000]

    headers = {"content-type": "multipart/form-data; boundary=x"}
    assert "send a smaller file" in error(served.client.post("/v1/answer", content=chunks(), headers=headers), 413)
    words = "word " * 5000
    assert "at most 20000" in error(served.ask(question=words), 413)
    assert not served.request_files()


@pytest.mark.parametrize("name", ["../../../../tmp/evil.mp4", "/etc/passwd", "a\nb`$(id)`.mp4", "." * 300, ""])
def test_file_names_mean_nothing(served: Served, name: str) -> None:
    before = set(served.folder.rglob("*"))
    response = served.form({"video": (name or "x", served.video.read_bytes())})
    assert response.status_code == 200, response.text
    assert response.json()["facts"]["video"] == "video"
    assert set(served.folder.rglob("*")) == before
    assert "not a side-channel" in error(served.form({"../video": served.video.open("rb")}), 400)
