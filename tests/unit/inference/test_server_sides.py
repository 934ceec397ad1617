"""Several patches on one server: switched by name, each side-channel sent in the ways that are documented."""

from __future__ import annotations

import json
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.rgbd_scenes import make_plain_scene
from helpers.server_client import QUESTION, SIDES, TOKENS, Served, data_url, error, events, zipped
from PIL import Image

from pave.checkpoints import load as load_checkpoint
from pave.inference.limits import Limits
from pave.inference.provenance import as_json
from pave.inference.server.job_queue import JobQueue
from pave.inference.session import AnswerRequest, Session, load_with_patches
from pave.media import feature_files
from pave.types import SideTokens

pytest_plugins = ["helpers.server_client"]


@pytest.fixture(scope="module")
def sent(many: Served, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files for the side-channels that the video does not hold."""
    folder = tmp_path_factory.mktemp("sent")
    room = zipped(make_plain_scene(folder / "room"), folder / "room.zip")
    return {"camera": many.video.with_name("test_00001.mp4"), "room": room}


def alone(folder: Path, video: Path, files: dict[str, Path]) -> tuple[str, dict[str, Any]]:
    """Answer and facts of one trained folder by itself, from local files."""
    session = Session(*load_checkpoint.load_model(folder, None, device="cpu"))
    scene = session.load_video(video, files)
    sides = json.loads(json.dumps(as_json(scene.provenance)["sides"]))
    return session.ask(scene, AnswerRequest(QUESTION, max_new_tokens=TOKENS)).text, sides


@pytest.mark.parametrize("name", SIDES)
def test_each_patch_answers_as_it_does_alone(
    many: Served, patches: dict[str, Path], sent: dict[str, Path], name: str
) -> None:
    local = {"camera": sent["camera"], "room": sent["room"].with_suffix("")}
    files = {name: local[name]} if name in local else {}
    text, sides = alone(patches[name], many.video, files)
    urls = {key: data_url(file) for key, file in sent.items() if key == name}
    got = many.ask(patches=[name], sides=urls).json()
    assert got["answer"]["text"] == text
    assert got["answer"]["patches"] == {name: 1.0}
    found, expected = got["facts"]["sides"][name], sides[name]
    assert {**found, "source": ""} == {**expected, "source": ""}
    assert found["steps"] == {"camera": 4, "more": 8, "room": 2}[name]
    form = {"video": many.video.open("rb"), **{key: sent[key].open("rb") for key in urls}}
    body = {"patches": f'["{name}"]', "max_new_tokens": str(TOKENS)}
    assert many.form(form, **body).json() == got
    assert many.chat(patches=[name], sides=urls).json()["choices"][0]["message"]["content"] == text
    streamed = events(many.chat(patches=[name], sides=urls, stream=True))
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in streamed).strip() == text
    assert not many.left()


def test_all_at_once_some_and_none(many: Served, sent: dict[str, Path]) -> None:
    urls = {name: data_url(file) for name, file in sent.items()}
    everything = many.ask(sides=urls, base=True).json()
    assert everything["answer"]["patches"] == dict.fromkeys(["audio", *SIDES], 1.0)
    assert not any(side["absent"] for side in everything["facts"]["sides"].values())
    assert everything["base"]["patches"] == {}
    said = [many.ask(sides=urls, patches=on).json()["answer"]["text"] for on in (["audio"], ["audio", "room"], [])]
    assert said[2] == everything["base"]["text"]
    assert len({everything["answer"]["text"], *said}) == 4
    assert many.ask(sides=urls, base=True).json() == everything
    unsent = many.ask().json()
    absent = {name: side["absent"] for name, side in unsent["facts"]["sides"].items() if side["absent"]}
    assert absent == dict.fromkeys(["camera", "room"], "video: a video does not hold it; give a file of its own")
    assert unsent["answer"]["text"] != everything["answer"]["text"]
    assert "known: audio, camera, more, room" in error(many.ask(patches=["depth"]), 400)
    assert not many.left()


def test_several_cameras_come_as_zipped_features(many: Served, tmp_path: Path) -> None:
    for name in ("left", "right"):
        tokens = SideTokens(torch.randn(4, 4, 24), torch.arange(4.0))
        feature_files.write(
            tmp_path / f"take/{name}.safetensors", tokens, feature_files.Meta("exo", "llava_onevision_tower", name)
        )
    got = many.ask(sides={"camera": data_url(zipped(tmp_path / "take", tmp_path / "take.zip"))}).json()
    assert got["facts"]["sides"]["camera"]["steps"] == 8
    assert got["facts"]["sides"]["camera"]["seconds"] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_the_page_takes_them_too(many: Served, patches: dict[str, Path], sent: dict[str, Path], tmp_path: Path) -> None:
    from pave.inference.server.web_page import ChatState, Page
    from pave.inference.untrusted_media import guarded_reader

    model, config = load_with_patches(patches["audio"], None, [], "cpu", [(name, str(patches[name])) for name in SIDES])
    queue = JobQueue(tmp_path, 1)
    with guarded_reader(Limits()) as read:
        page = Page(Session(model, config, read), queue, Limits(max_new_tokens=TOKENS))
        assert page.sides == ["audio", *SIDES]
        files = [None, str(sent["camera"]), None, str(sent["room"])]
        for on in (page.sides, ["room"], []):
            *_, (_, chat, _, used, _) = page.answer(ChatState(), QUESTION, False, on, str(many.video), *files)
            urls = {name: data_url(file) for name, file in sent.items()}
            assert chat[-1]["content"] == many.ask(patches=on, sides=urls).json()["answer"]["text"]
            assert "from room.zip, 2 steps of 4 tokens" in used
    queue.close()
    assert {file.name for file in sent["room"].parent.iterdir()} == {"room", "room.zip"}


def _with(name: str, data: bytes = b"", method: int = zipfile.ZIP_STORED) -> Callable[[Path], None]:
    def make(archive: Path) -> None:
        with zipfile.ZipFile(archive, "a", method) as packed:
            packed.writestr(name, data)

    return make


def _link(archive: Path) -> None:
    entry = zipfile.ZipInfo("room/link.txt")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(archive, "a") as packed:
        packed.writestr(entry, "/etc/passwd")


def _encrypted(archive: Path) -> None:
    with zipfile.ZipFile(archive, "a") as packed:
        packed.infolist()[0].flag_bits |= 1
        packed._didModify = True  # type: ignore[attr-defined]


def _cut(archive: Path) -> None:
    archive.write_bytes(archive.read_bytes()[:-40])


def _flip(archive: Path) -> None:
    data = bytearray(archive.read_bytes())
    data[200] ^= 255
    archive.write_bytes(data)


def _wide(archive: Path) -> None:
    Image.fromarray(np.zeros((1024, 8192), np.uint8)).save(archive.with_name("wide.png"))
    with zipfile.ZipFile(archive, "a") as packed:
        packed.write(archive.with_name("wide.png"), "room/wide.png")


def _many(archive: Path) -> None:
    with zipfile.ZipFile(archive, "a") as packed:
        for number in range(10_001):
            packed.writestr(f"{number}.txt", "")


@pytest.mark.parametrize(
    ("spoil", "status", "said"),
    [
        (_with("../../evil.txt"), 415, "leads out of the zip"),
        (_with("/tmp/evil.txt"), 415, "leads out of the zip"),
        (_with("..\\evil.txt"), 415, "leads out of the zip"),
        (_link, 415, "leads out of the zip"),
        (_encrypted, 415, "encrypted"),
        (_with("a.txt", method=zipfile.ZIP_LZMA), 415, "uncommon way"),
        (_with("room/9.depth.gif"), 415, "holds '9.depth.gif'; expected only .jpg"),
        (_with("room/9.pt"), 415, "holds '9.pt'"),
        (_with("room/9.png", b"%!PS-Adobe-3.0 EPSF-3.0"), 415, "cannot identify image file"),
        (_with("room/0.png/a.txt"), 415, "cannot be unpacked"),
        (_with("zeros.txt", bytes(3_000_000), zipfile.ZIP_DEFLATED), 413, "over 1 MB when unpacked"),
        (_wide, 413, "at most 8294400"),
        (_many, 413, "10012 files, at most 10000"),
        (_cut, 415, "cannot be unpacked"),
        (_flip, 415, "cannot be unpacked"),
        (_with("other/0.txt"), 400, "room: no RGB-D frames"),
    ],
    ids=lambda value: "" if callable(value) else str(value)[:20],
)
def test_zips_that_are_refused(
    many: Served, sent: dict[str, Path], tmp_path: Path, spoil: Callable[[Path], None], status: int, said: str
) -> None:
    archive = Path(shutil.copy(sent["room"], tmp_path / "room.zip"))
    spoil(archive)
    before = {file for file in many.folder.rglob("*") if file.is_file()}
    assert said in error(many.ask(sides={"room": data_url(archive)}), status)
    assert {file for file in many.folder.rglob("*") if file.is_file()} == before
    assert not many.left()


def test_what_desktops_put_into_a_zip_is_left_out(many: Served, sent: dict[str, Path], tmp_path: Path) -> None:
    archive = Path(shutil.copy(sent["room"], tmp_path / "room.zip"))
    for name in ("__MACOSX/room/._0.png", "room/.DS_Store"):
        _with(name, b"?")(archive)
    assert many.ask(sides={"room": data_url(archive)}).json() == many.ask(sides={"room": data_url(sent["room"])}).json()
