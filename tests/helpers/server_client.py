"""Clients of a running server, as several test files use them."""

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
from pave.checkpoints import load as load_checkpoint
from pave.config import Config
from pave.inference.session import load_with_patches
from pave.models.encoders import imagebind_audio
from pave.models.patched_model import PatchedModel

HOME = "http://127.0.0.1"

QUESTION = "Which sound is heard? Answer with one word."

WAITING = 8

TOKENS = 8

SIDES = {"camera": ("exo", ["frames=4"]), "more": ("dense", ["fps=1"]), "room": ("scene3d", ["tower=base", "views=2"])}
"""Side-channels beside audio, each with its plugin and options; all see through the base's own tower."""


class Served(NamedTuple):
    """A running server."""

    client: Any
    folder: Path
    """Of the server's files."""
    ckpt: Path
    video: Path

    def ask(self, path: str = "/v1/answer", **fields: Any) -> Any:
        """A JSON request, without a video that of the tiny world."""
        fields = {"question": QUESTION, "video": data_url(self.video), "max_new_tokens": TOKENS, **fields}
        return self.client.post(path, json=fields)

    def chat(self, **fields: Any) -> Any:
        """The same question as OpenAI's clients ask it."""
        content = [
            {"type": "video_url", "video_url": {"url": data_url(self.video)}},
            {"type": "text", "text": QUESTION},
        ]
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": TOKENS, **fields}
        return self.client.post("/v1/chat/completions", json=body)

    def form(self, files: dict[str, Any], **fields: Any) -> Any:
        """A multipart request."""
        return self.client.post("/v1/answer", files=files, data={"question": QUESTION, **fields})

    def left(self) -> list[Path]:
        """Files of requests."""
        return list((self.folder / "requests").rglob("*"))


LONG = 600
"""Seconds; where many tests share a machine, a start takes minutes."""


class Process(NamedTuple):
    """A server that runs by itself."""

    address: str
    pid: int
    temporary: Path
    """All its files, and those of its processes."""


@contextmanager
def process_of(folder: Path, *argv: str) -> Iterator[Process]:
    """`pave serve` on a free port, with an empty folder of ours; interrupted it must end well and leave nothing."""
    temporary, log = folder / "temporary", folder / "stderr.txt"
    temporary.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "GRADIO_TEMP_DIR"}
    # torch keeps a folder of its own there, which stays.
    environment |= {"TMPDIR": str(temporary), "TORCHINDUCTOR_CACHE_DIR": str(folder / "torch")}
    command = [sys.executable, "-m", "pave", "serve", *argv, "--port", "0", "--device", "cpu"]
    with log.open("w") as errors:
        started = subprocess.Popen(command, stderr=errors, env=environment)
    try:
        yield Process(_address(started, log), started.pid, temporary)
    finally:
        started.send_signal(signal.SIGTERM)
        started.wait(LONG)
    assert started.returncode == 0, log.read_text()
    assert not list(temporary.iterdir())


def _address(started: subprocess.Popen, log: Path) -> str:
    """Where it listens, once it says so."""
    end = time.monotonic() + LONG
    while started.poll() is None and time.monotonic() < end:
        for line in log.read_text().splitlines():
            if line.startswith("http://127.0.0.1:"):
                return line
        time.sleep(0.1)
    raise AssertionError(log.read_text())


def data_url(file: Path, kind: str = "video/mp4") -> str:
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"


def zipped(folder: Path, archive: Path) -> Path:
    """A folder as people zip it: itself, with what is in it."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for file in sorted(folder.rglob("*")):
            packed.write(file, file.relative_to(folder.parent))
    return archive


def events(response: Any) -> list[Any]:
    """Of a stream, but for [DONE]."""
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def error(response: Any, status: int) -> str:
    assert response.status_code == status, response.text
    message = response.json()["error"]["message"]
    assert "/pave-serve-" not in message
    return message


pass


@contextmanager
def running(model: PatchedModel, config: Config, ckpt: Path, video: Path) -> Iterator[Served]:
    """A server in this process."""
    from starlette.testclient import TestClient

    from pave.inference.server import app as server

    options = server.Options(max_megabytes=1, max_seconds=20, max_new_tokens=16, max_waiting=WAITING)
    before = os.environ.get("GRADIO_TEMP_DIR")
    with server.application(model, config, options) as app:
        folder = Path(os.environ["GRADIO_TEMP_DIR"]).parent
        with TestClient(app, HOME) as client:
            yield Served(client, folder, ckpt, video)
    assert not folder.exists()
    assert os.environ.get("GRADIO_TEMP_DIR") == before


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
    """With the audio patch."""
    pytest.importorskip("gradio", reason="needs the extra demo")
    model, config = load_checkpoint.load_model(patches["audio"], None, device="cpu")
    with running(model, config, patches["audio"], tiny_setup.data / "videos/test_00000.mp4") as one:
        yield one


@pytest.fixture(scope="module")
def many(tiny_setup: TinySetup, patches: dict[str, Path]) -> Iterator[Served]:
    """With all patches, as `--patch NAME=DIR` adds them."""
    pytest.importorskip("gradio", reason="needs the extra demo")
    model, config = load_with_patches(patches["audio"], None, [], "cpu", [(name, str(patches[name])) for name in SIDES])
    with running(model, config, patches["audio"], tiny_setup.data / "videos/test_00000.mp4") as one:
        yield one
