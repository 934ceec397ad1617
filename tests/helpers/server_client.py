"""Servers for tests, in this process or as a process of their own, and clients of them."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from helpers.random_checkpoints import save_trained, side_config
from helpers.tiny_model import SIDE_DIM, TinySetup
from pave.inference.session import load_with_patches
from pave.models.encoders import imagebind_audio

QUESTION = "Which sound is heard? Answer with one word."
MAX_WAITING = 8
NEW_TOKENS = 8
TIMEOUT = 600
"""Seconds; where many tests share a machine, a start takes minutes."""
SIDES = {"camera": ("exo", ["frames=4"]), "more": ("dense", ["fps=1"]), "room": ("scene3d", ["tower=base", "views=2"])}
"""Side-channels beside audio, each with its plugin and options; all see through the base's own tower."""


class Served(NamedTuple):
    """A running server; the requests here switch on the audio patch alone, unless they say otherwise."""

    client: Any
    folder: Path
    """The server's own files."""
    ckpt: Path
    """The trained folder with the audio patch."""
    video: Path

    def ask(self, **fields: Any) -> Any:
        """A JSON request, about the video of the tiny setup unless there is another."""
        defaults = {"question": QUESTION, "video": data_url(self.video), "patches": ["audio"]}
        return self.client.post("/v1/answer", json={**defaults, "max_new_tokens": NEW_TOKENS, **fields})

    def chat(self, **fields: Any) -> Any:
        """The same question as OpenAI's clients ask it."""
        content = [
            {"type": "video_url", "video_url": {"url": data_url(self.video)}},
            {"type": "text", "text": QUESTION},
        ]
        patches = {} if "model" in fields else {"patches": ["audio"]}
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": NEW_TOKENS, **patches, **fields}
        return self.client.post("/v1/chat/completions", json=body)

    def form(self, files: dict[str, Any], **fields: Any) -> Any:
        """A multipart request."""
        data = {"question": QUESTION, "patches": '["audio"]', **fields}
        return self.client.post("/v1/answer", files=files, data=data)

    def request_files(self) -> list[Path]:
        """Files of requests that are still there."""
        return list((self.folder / "requests").rglob("*"))


class Process(NamedTuple):
    """A server in a process of its own."""

    address: str
    pid: int
    temporary: Path
    """All its files, and those of its processes."""


@contextmanager
def serve_process(folder: Path, *argv: str) -> Iterator[Process]:
    """`pave serve` on a free port, with an empty folder of ours; interrupted it must end well and leave nothing."""
    temporary, log = folder / "temporary", folder / "stderr.txt"
    temporary.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "GRADIO_TEMP_DIR"}
    # torch keeps a folder of its own there, which stays.
    environment |= {"TMPDIR": str(temporary), "TORCHINDUCTOR_CACHE_DIR": str(folder / "torch")}
    command = [sys.executable, "-m", "pave", "serve", *argv, "--port", "0", "--device", "cpu"]
    with log.open("w") as errors:
        process = subprocess.Popen(command, stderr=errors, env=environment)
    try:
        yield Process(_wait_for_address(process, log), process.pid, temporary)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(TIMEOUT)
    assert process.returncode == 0, log.read_text()
    assert not list(temporary.iterdir())


def _wait_for_address(process: subprocess.Popen, log: Path) -> str:
    """The address of the server, once it prints it."""
    end = time.monotonic() + TIMEOUT
    while process.poll() is None and time.monotonic() < end:
        for line in log.read_text().splitlines():
            if line.startswith("http://127.0.0.1:"):
                return line
        time.sleep(0.1)
    raise AssertionError(log.read_text())


def data_url(file: Path, kind: str = "video/mp4") -> str:
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"


def zip_folder(folder: Path, archive: Path) -> Path:
    """A folder as people zip it: itself, with what is in it."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for file in sorted(folder.rglob("*")):
            packed.write(file, file.relative_to(folder.parent))
    return archive


def events(response: Any) -> list[Any]:
    """The data of a stream, without [DONE]."""
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def error(response: Any, status: int) -> str:
    """The message of a refused request, which names no folder of the server."""
    assert response.status_code == status, response.text
    message = response.json()["error"]["message"]
    assert "/pave-serve-" not in message
    return message


@pytest.fixture(scope="session")
def patches(tiny_setup: TinySetup, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A trained folder for each side-channel, by the name that it has on the server."""
    out = tmp_path_factory.mktemp("patches")
    torch.manual_seed(0)
    imagebind_audio.save(imagebind_audio.Tower(16, 1, 2, SIDE_DIM), out / "tower.safetensors")
    sides: dict[str, dict[str, Any]] = {"audio": {"encoder": str(out / "tower.safetensors")}}
    for name, (side, options) in SIDES.items():
        tower = {"side_dim": 24, "encoder": str(tiny_setup.base), "encoder_options": options}
        sides[name] = {"side": side, **tower}
    return {
        name: save_trained(side_config(tiny_setup, {name: side}), out / name, seed)
        for seed, (name, side) in enumerate(sides.items())
    }


@pytest.fixture(scope="session")
def served(tiny_setup: TinySetup, patches: dict[str, Path]) -> Iterator[Served]:
    """One server for all tests, with all patches, as `--patch NAME=DIR` adds them."""
    pytest.importorskip("gradio", reason="needs the extra demo")
    from starlette.testclient import TestClient

    from pave.inference.server import app as server

    model, config = load_with_patches(patches["audio"], None, [], "cpu", [(name, str(patches[name])) for name in SIDES])
    options = server.Options(max_megabytes=1, max_seconds=20, max_new_tokens=16, max_waiting=MAX_WAITING)
    before = os.environ.get("GRADIO_TEMP_DIR")
    with server.application(model, config, options) as app:
        folder = Path(os.environ["GRADIO_TEMP_DIR"]).parent
        with TestClient(app, "http://127.0.0.1") as client:
            yield Served(client, folder, patches["audio"], tiny_setup.data / "videos/test_00000.mp4")
    assert not folder.exists()
    assert os.environ.get("GRADIO_TEMP_DIR") == before
