"""`pave fetch` against a small hub of our own: an HTTP server on this machine that huggingface_hub really talks to."""

from __future__ import annotations

import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
from helpers.paths import GOLDEN
from huggingface_hub import HfFileSystem

from pave.checkpoints import download, model_zoo
from pave.cli import main

NAME = "pave_v5_1_3_lora_avsd_imagebind"
CHECKPOINT = GOLDEN / "e2e/tiny_pave_v5_1_3_lora"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """The part of the hub's interface that a download needs, with one repository."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = files
        self.sha256 = {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}
        self.ranges: list[str] = []
        """What was asked for, byte by byte."""
        self.breaks_after: int | None = None
        """So many answers with content, and then it fails."""


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith(f"/{model_zoo.REPOSITORY}/resolve/"):
            self._send_range(self.server.files[path.split("/", 5)[5]])
        elif path.startswith(f"/api/models/{model_zoo.REPOSITORY}/tree/"):
            self._send_json([self._entry(name) for name in self.server.files])
        else:
            self._send_json({"id": model_zoo.REPOSITORY, "sha": COMMIT, "siblings": []})

    def do_POST(self) -> None:
        self._send_json([self._entry(name) for name in self.server.files])

    def _entry(self, name: str) -> dict[str, object]:
        size = len(self.server.files[name])
        entry = {"type": "file", "oid": "0" * 40, "size": size, "path": name}
        if name not in self.server.sha256:
            return entry
        return {**entry, "lfs": {"oid": self.server.sha256[name], "size": size, "pointerSize": 100}}

    def _send_range(self, data: bytes) -> None:
        requested = self.headers["Range"]
        if self.server.breaks_after is not None and len(self.server.ranges) >= self.server.breaks_after:
            self.send_error(404)
            return
        self.server.ranges.append(requested)
        first, last = map(int, requested.removeprefix("bytes=").split("-"))
        self._send(206, data[first : last + 1], "application/zip")

    def _send_json(self, content: object) -> None:
        self._send(200, json.dumps(content).encode(), "application/json")

    def _send(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def zipped(**more: bytes) -> bytes:
    """The tiny checkpoint as it is uploaded: in a folder, among files that do not belong to it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in CHECKPOINT.iterdir():
            archive.write(file, f"{NAME}/{file.name}")
            archive.writestr(f"{NAME}/checkpoint-2000/{file.name}", b"older")
        for name, data in {"__MACOSX/._config.json": b"", **more}.items():
            archive.writestr(name, data)
    return buffer.getvalue()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Hub({f"{NAME}.zip": zipped(), "README.md": b"hello"})
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(download, "HfFileSystem", partial(HfFileSystem, endpoint=endpoint, skip_instance_cache=True))
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def fails(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """Exit code 1 and one line."""
    capsys.readouterr()
    assert main.main(["fetch", *map(str, argv)]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pave: ")]
    assert len(lines) == 1
    return lines[0]


def left(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_the_folder_is_the_checkpoint(hub: Hub, tmp_path: Path) -> None:
    out = tmp_path / "a/ckpt"
    assert main.main(["fetch", NAME, "--out", str(out)]) == 0
    assert left(out) == sorted([download.SOURCE, *left(CHECKPOINT)])
    for file in CHECKPOINT.iterdir():
        assert (out / file.name).read_bytes() == file.read_bytes()
    assert json.loads((out / download.SOURCE).read_text())["sha256"] == hub.sha256[f"{NAME}.zip"]
    assert left(tmp_path / "a") == ["ckpt"]
    requests = len(hub.ranges)
    assert main.main(["fetch", NAME, "--out", str(out)]) == 0
    assert len(hub.ranges) == requests


def test_a_broken_download_goes_on_where_it_stopped(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    size = len(hub.files[f"{NAME}.zip"])
    monkeypatch.setattr(download, "BLOCK", size // 4)
    hub.breaks_after = 2
    assert "the same command goes on where it stopped" in fails(capsys, NAME, "--out", tmp_path / "ckpt")
    (part,) = tmp_path.iterdir()
    assert part.stat().st_size == 2 * (size // 4)
    hub.breaks_after = None
    assert main.main(["fetch", NAME, "--out", str(tmp_path / "ckpt")]) == 0
    starts = [int(requested.removeprefix("bytes=").split("-")[0]) for requested in hub.ranges]
    assert starts == [i * (size // 4) for i in range(-(-size // (size // 4)))]
    assert left(tmp_path) == ["ckpt"]


def test_a_wrong_checksum_is_refused_and_the_next_try_starts_anew(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = hub.files[f"{NAME}.zip"]
    hub.files[f"{NAME}.zip"] = good[:100] + bytes([good[100] ^ 1]) + good[101:]
    line = fails(capsys, NAME, "--out", tmp_path / "ckpt")
    assert hub.sha256[f"{NAME}.zip"] in line
    assert not left(tmp_path)
    hub.files[f"{NAME}.zip"] = good
    assert main.main(["fetch", NAME, "--out", str(tmp_path / "ckpt")]) == 0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"PK not a zip file", "not a whole zip file"),
        (zipped()[:-1000], "not a whole zip file"),
        (zipped(**{"../evil.txt": b"x"}), "'../evil.txt' points out of the folder"),
        (zipped(**{f"{NAME}/../../evil.txt": b"x"}), "points out of the folder"),
        (zipped(**{"/evil.txt": b"x"}), "points out of the folder"),
        (zipped(**{"other/non_lora_trainables.bin": b"x", "other/config.json": b"{}"}), "has 2 folders"),
        (zipped().replace(b"non_lora_trainables", b"non_lora_something_"), "has 0 folders"),
    ],
    ids=["no zip", "cut off", "climbs", "climbs within", "absolute", "two", "none"],
)
def test_what_is_no_checkpoint_leaves_no_folder(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes, message: str
) -> None:
    hub.files[f"{NAME}.zip"], hub.sha256[f"{NAME}.zip"] = data, hashlib.sha256(data).hexdigest()
    assert message in fails(capsys, NAME, "--out", tmp_path / "a/ckpt")
    assert left(tmp_path) == ["a"]
    assert all(name.endswith(".zip") for name in left(tmp_path / "a"))


def test_a_damaged_member_leaves_no_folder(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = bytearray(zipped())
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        info = archive.getinfo(f"{NAME}/adapter_model.safetensors")
    middle = info.header_offset + info.compress_size // 2
    data[middle : middle + 8] = bytes(8)
    hub.files[f"{NAME}.zip"], hub.sha256[f"{NAME}.zip"] = bytes(data), hashlib.sha256(data).hexdigest()
    assert "not a whole zip file" in fails(capsys, NAME, "--out", tmp_path / "a/ckpt")
    assert all(name.endswith(".zip") for name in left(tmp_path / "a"))


def test_what_the_hub_lacks(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checksum = hub.sha256.pop(f"{NAME}.zip")
    assert "no checksum" in fails(capsys, NAME, "--out", tmp_path / "ckpt")
    hub.sha256[f"{NAME}.zip"] = checksum
    del hub.files[f"{NAME}.zip"]
    assert f"0 files for {NAME}.zip" in fails(capsys, NAME, "--out", tmp_path / "ckpt")


def test_names_and_folders(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"did you mean '{NAME}'?" in fails(capsys, NAME + "s", "--out", tmp_path / "ckpt")
    assert main.main(["fetch", NAME, "--out", str(tmp_path / "ckpt")]) == 0
    other = model_zoo.CHECKPOINTS[1].name
    assert f"is not {other}" in fails(capsys, other, "--out", tmp_path / "ckpt")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("do not replace")
    assert "exists already" in fails(capsys, NAME, "--out", tmp_path / "mine")
    assert left(tmp_path / "mine") == ["thesis.txt"]


def test_offline(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = partial(HfFileSystem, endpoint="http://127.0.0.1:1", skip_instance_cache=True)
    monkeypatch.setattr(download, "HfFileSystem", nowhere)
    line = fails(capsys, NAME, "--out", tmp_path / "ckpt")
    assert "cannot be fetched from zhuomingliu/PAVE" in line
    assert f"copy the folder to {tmp_path / 'ckpt'}" in line
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "offline mode is enabled" in fails(capsys, NAME, "--out", tmp_path / "ckpt")
    assert not left(tmp_path)
