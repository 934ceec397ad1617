"""Several patches on one server: switched by name, each side-channel sent in the ways that are documented."""

from __future__ import annotations

import json
import pickle
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
from helpers.server_client import NEW_TOKENS, QUESTION, SIDES, Served, data_url, error, events, zip_folder
from PIL import Image

from pave.checkpoints import load as load_checkpoint
from pave.inference.limits import Limits
from pave.inference.provenance import as_json
from pave.inference.server.job_queue import JobQueue
from pave.inference.session import AnswerRequest, Session, load_with_patches
from pave.inference.untrusted_media import Media, read_untrusted
from pave.media import feature_files
from pave.types import SideTokens

pytest_plugins = ["helpers.server_client"]


@pytest.fixture(scope="module")
def side_files(served: Served, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files for the side-channels that the video does not hold."""
    folder = tmp_path_factory.mktemp("side_files")
    room = zip_folder(make_plain_scene(folder / "room"), folder / "room.zip")
    return {"camera": served.video.with_name("test_00001.mp4"), "room": room}


@pytest.mark.parametrize(("name", "steps"), [("camera", 4), ("more", 8), ("room", 2)])
def test_each_patch_answers_as_it_does_alone(
    served: Served, patches: dict[str, Path], side_files: dict[str, Path], name: str, steps: int
) -> None:
    session = Session(*load_checkpoint.load_model(patches[name], None, device="cpu"))
    files = {key: file for key, file in side_files.items() if key == name}
    # On this machine a scene is a folder.
    folders = {key: file.with_suffix("") if file.suffix == ".zip" else file for key, file in files.items()}
    loaded = session.load_video(served.video, folders)
    text = session.ask(loaded, AnswerRequest(QUESTION, max_new_tokens=NEW_TOKENS)).text

    urls = {key: data_url(file) for key, file in files.items()}
    body = served.ask(patches=[name], sides=urls).json()
    assert body["answer"]["text"] == text
    assert body["answer"]["patches"] == {name: 1.0}
    facts, expected = body["facts"]["sides"][name], json.loads(json.dumps(as_json(loaded.provenance)["sides"][name]))
    assert {**facts, "source": ""} == {**expected, "source": ""}
    assert facts["steps"] == steps

    form = {"video": served.video.open("rb"), **{key: file.open("rb") for key, file in files.items()}}
    assert served.form(form, patches=f'["{name}"]', max_new_tokens=str(NEW_TOKENS)).json() == body
    assert served.chat(patches=[name], sides=urls).json()["choices"][0]["message"]["content"] == text
    stream = events(served.chat(patches=[name], sides=urls, stream=True))
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in stream).strip() == text
    assert not served.request_files()


def test_all_at_once_some_and_none(served: Served, side_files: dict[str, Path]) -> None:
    urls = {name: data_url(file) for name, file in side_files.items()}
    body = served.ask(patches=None, sides=urls, base=True).json()
    assert body["answer"]["patches"] == dict.fromkeys(["audio", *SIDES], 1.0)
    assert not any(side["absent"] for side in body["facts"]["sides"].values())
    assert body["base"]["patches"] == {}
    texts = [
        served.ask(sides=urls, patches=names).json()["answer"]["text"] for names in (["audio"], ["audio", "room"], [])
    ]
    assert texts[2] == body["base"]["text"]
    assert len({body["answer"]["text"], *texts}) == 4
    assert served.ask(patches=None, sides=urls, base=True).json() == body

    without_files = served.ask(patches=None).json()
    absent = {name: side["absent"] for name, side in without_files["facts"]["sides"].items() if side["absent"]}
    assert absent == dict.fromkeys(["camera", "room"], "video: a video does not hold it; give a file of its own")
    assert without_files["answer"]["text"] != body["answer"]["text"]
    assert "known: audio, camera, more, room" in error(served.ask(patches=["depth"]), 400)
    assert not served.request_files()


def test_several_cameras_come_as_zipped_features(served: Served, tmp_path: Path) -> None:
    for name in ("left", "right"):
        tokens = SideTokens(torch.randn(4, 4, 24), torch.arange(4.0))
        feature_files.write(
            tmp_path / f"take/{name}.safetensors", tokens, feature_files.Meta("exo", "llava_onevision_tower", name)
        )
    archive = zip_folder(tmp_path / "take", tmp_path / "take.zip")
    camera = served.ask(sides={"camera": data_url(archive)}).json()["facts"]["sides"]["camera"]
    assert (camera["steps"], camera["seconds"]) == (8, [0, 0, 1, 1, 2, 2, 3, 3])


def test_the_page_takes_them_too(
    served: Served, patches: dict[str, Path], side_files: dict[str, Path], tmp_path: Path
) -> None:
    from pave.inference.server.web_page import ChatState, Page

    def read_here(*arguments: Any) -> Media:
        return pickle.loads(read_untrusted(*arguments, Limits()))

    model, config = load_with_patches(patches["audio"], None, [], "cpu", [(name, str(patches[name])) for name in SIDES])
    queue = JobQueue(tmp_path, 1)
    page = Page(Session(model, config, read_here), queue, Limits(max_new_tokens=NEW_TOKENS))
    assert page.sides == ["audio", *SIDES]
    files = [None, str(side_files["camera"]), None, str(side_files["room"])]
    urls = {name: data_url(file) for name, file in side_files.items()}
    for names in (page.sides, ["room"], []):
        *_, (_, chat, _, used, _) = page.answer(ChatState(), QUESTION, False, names, str(served.video), *files)
        assert chat[-1]["content"] == served.ask(patches=names, sides=urls).json()["answer"]["text"]
        assert "from room.zip, 2 steps of 4 tokens" in used
    queue.close()
    assert {file.name for file in side_files["room"].parent.iterdir()} == {"room", "room.zip"}


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
    ("damage", "status", "message"),
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
    served: Served,
    side_files: dict[str, Path],
    tmp_path: Path,
    damage: Callable[[Path], None],
    status: int,
    message: str,
) -> None:
    archive = Path(shutil.copy(side_files["room"], tmp_path / "room.zip"))
    damage(archive)
    before = {file for file in served.folder.rglob("*") if file.is_file()}
    assert message in error(served.ask(sides={"room": data_url(archive)}), status)
    assert {file for file in served.folder.rglob("*") if file.is_file()} == before
    assert not served.request_files()


def test_files_that_desktops_add_to_a_zip_are_left_out(
    served: Served, side_files: dict[str, Path], tmp_path: Path
) -> None:
    expected = served.ask(sides={"room": data_url(side_files["room"])}).json()
    archive = Path(shutil.copy(side_files["room"], tmp_path / "room.zip"))
    for name in ("__MACOSX/room/._0.png", "room/.DS_Store"):
        _with(name, b"?")(archive)
    assert served.ask(sides={"room": data_url(archive)}).json() == expected
