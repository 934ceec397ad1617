"""RGB-D scenes on disk: three layouts, what is wrong with a scene, and the export to the posed layout."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.rgbd_scenes import (
    ALIGN,
    camera_pose,
    color_image,
    depth_image,
    intrinsic_matrix,
    make_plain_scene,
    make_sens_scene,
    write_matrix,
)
from PIL import Image

from pave.media import rgbd, scannet_export
from pave.types import UserError


def snapshot(folder: Path) -> dict[str, bytes]:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def test_scenes_are_found_at_any_depth_in_any_layout(tmp_path: Path) -> None:
    make_sens_scene(tmp_path / "scans/scene0001_00", frames=1)
    make_sens_scene(tmp_path / "scans/scene0000_00", frames=1)
    room = make_plain_scene(tmp_path / "room", frames=1)
    make_plain_scene(tmp_path / ".hidden.1.tmp", frames=1)
    scannet_export.main(tmp_path / "scans", tmp_path / "posed")
    found = dict(rgbd.find_scenes(tmp_path))
    assert sorted(found) == ["posed/scene0000_00", "posed/scene0001_00", "room"] + [
        f"scans/scene000{i}_00" for i in range(2)
    ]
    assert found["room"] == room
    assert rgbd.find_scenes(room) == [("room", room)]
    assert [rgbd.find_layout(path) for path in (tmp_path, room)] == [None, rgbd.PLAIN]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: no RGB-D scenes in it"):
        rgbd.find_scenes(tmp_path / "empty")


def test_nine_comes_before_ten_and_lost_frames_are_left_out(tmp_path: Path) -> None:
    frames = rgbd.list_frames(make_sens_scene(tmp_path / "a", frames=12, lost=(3, 10)))
    assert [frame.number for frame in frames] == [0, 1, 2, 4, 5, 6, 7, 8, 9, 11]
    assert [frame.color.stem for frame in frames] == [str(frame.number) for frame in frames]
    assert all(np.array_equal(frame.pose, camera_pose(frame.number)) for frame in frames)


def test_a_time_stamp_may_name_a_frame(tmp_path: Path) -> None:
    folder = make_plain_scene(tmp_path / "a", frames=2)
    for file in folder.glob("[01].*"):
        file.rename(file.with_name(f"1305031.45{file.name}"))
    frames = rgbd.list_frames(folder)
    assert [frame.color.name for frame in frames] == ["1305031.450.png", "1305031.451.png"]
    assert rgbd.read_depth(frames[1].depth).size == (64, 64)
    assert rgbd.find_intrinsics(folder, frames[1]).matrix.tolist() == intrinsic_matrix(64, 64).tolist()


def test_the_lens_of_the_depth_camera_comes_first(tmp_path: Path) -> None:
    folder = make_sens_scene(tmp_path / "a", frames=1)
    (frame,) = rgbd.list_frames(folder)
    assert rgbd.find_intrinsics(folder, frame)[1:] == (pytest.approx(intrinsic_matrix(64, 48)), True)
    write_matrix(folder / "color/0.intrinsic.txt", intrinsic_matrix(7, 7))
    assert rgbd.find_intrinsics(folder, frame)[1:] == (pytest.approx(intrinsic_matrix(7, 7)), False)


def test_alignment_and_scale_are_stated_or_known(tmp_path: Path) -> None:
    folder = make_sens_scene(tmp_path / "scene0001_00", frames=1)
    meta, settings = folder / "scene0001_00.txt", folder / "scene.json"
    assert rgbd.read_axis_align(folder) == pytest.approx(ALIGN)
    assert rgbd.read_depth_scale(folder) == 1000
    meta.write_text("sceneType = Office\n")  # as of the scenes of the hidden test
    assert rgbd.read_axis_align(folder) == pytest.approx(np.eye(4))
    meta.unlink()
    assert rgbd.read_axis_align(folder) is None
    settings.write_text(json.dumps({"axis_align": ALIGN.tolist(), "depth_scale": 4000}))
    assert rgbd.read_axis_align(folder) == pytest.approx(ALIGN)
    assert rgbd.read_depth_scale(folder) == 4000
    assert rgbd.read_axis_align(make_plain_scene(tmp_path / "room")) == pytest.approx(np.eye(4))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


FAULTS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no depth": ("0.depth.png", Path.unlink, "no such file; each frame needs a depth picture"),
    "8-bit depth": (
        "0.depth.png",
        lambda p: Image.new("L", (8, 8)).save(p),
        "a picture of kind 'L', expected depth as 16-bit",
    ),
    "colour depth": ("0.depth.png", lambda p: Image.new("RGB", (8, 8)).save(p), "a picture of kind 'RGB'"),
    "cut depth": ("0.depth.png", truncate, "not a readable depth picture"),
    "text depth": ("0.depth.png", lambda p: p.write_text("hello"), "not a readable depth picture"),
    "cut colour": ("0.png", truncate, "not a readable colour picture"),
    "no pose": ("0.pose.txt", Path.unlink, "no such file; expected a 4x4 pose"),
    "3x4 pose": ("0.pose.txt", lambda p: write_matrix(p, camera_pose(0)[:3]), "holds 12 numbers, expected a 4x4 pose"),
    "words": ("0.pose.txt", lambda p: p.write_text("no pose"), "not numbers: .*'no'; expected a 4x4 pose"),
    "turned pose": ("0.pose.txt", lambda p: write_matrix(p, camera_pose(1).T), "last row .*, expected 0 0 0 1"),
    "no lens": ("intrinsic.txt", Path.unlink, "no intrinsics; expected depth_intrinsic.txt"),
    "lens of 4": ("intrinsic.txt", lambda p: p.write_text("1 2 3 4"), "holds 4 numbers, expected 3x3 or 4x4"),
    "blind lens": (
        "intrinsic.txt",
        lambda p: write_matrix(p, np.eye(3) * [0, 1, 1]),
        "focal lengths 0 and 1, expected pos",
    ),
    "no JSON": ("scene.json", lambda p: p.write_text("{"), "not valid JSON"),
    "list": ("scene.json", lambda p: p.write_text("[]"), "holds a list, expected one JSON object"),
    "other key": ("scene.json", lambda p: p.write_text('{"scale": 1}'), "unknown key 'scale'; known: axis_align"),
    "no scale": ("scene.json", lambda p: p.write_text('{"depth_scale": 0}'), "depth_scale 0; expected the units"),
    "3x3": ("scene.json", lambda p: p.write_text('{"axis_align": [[1]]}'), "its axis alignment is not 4x4 numbers"),
    "NaN": (
        "scene.json",
        lambda p: p.write_text(json.dumps({"axis_align": [math.nan] * 16})),
        "alignment is not finite",
    ),
}


def look(folder: Path) -> None:
    """All that is read of a scene."""
    rgbd.read_axis_align(folder), rgbd.read_depth_scale(folder)
    for frame in rgbd.list_frames(folder):
        rgbd.read_color(frame.color), rgbd.read_depth(frame.depth), rgbd.find_intrinsics(folder, frame)


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_one_line_that_names_the_file(fault: str, tmp_path: Path) -> None:
    file, spoil, message = FAULTS[fault]
    folder = make_plain_scene(tmp_path / "room", frames=2)
    look(folder)
    spoil(folder / file)
    with pytest.raises(UserError, match=message) as caught:
        look(folder)
    named = folder if fault == "no lens" else folder / file
    assert str(caught.value).startswith(f"{named}: ")
    assert "\n" not in str(caught.value)


def test_a_scene_without_any_pose_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a: none of its 2 frames has a finite pose"):
        rgbd.list_frames(make_sens_scene(tmp_path / "a", frames=2, lost=(0, 1)))
    (tmp_path / "b").mkdir()
    with pytest.raises(UserError, match="b: no RGB-D frames"):
        rgbd.list_frames(tmp_path / "b")


def test_damaged_pictures_never_raise_anything_else(tmp_path: Path) -> None:
    """A byte changed, or the end cut off, at many places."""
    color_image(0, 16, 16).save(tmp_path / "a.jpg")
    depth_image(16, 16).save(tmp_path / "a.png")
    rng = np.random.default_rng(0)
    for name, reader in (("a.jpg", rgbd.read_color), ("a.png", rgbd.read_depth)):
        whole = (tmp_path / name).read_bytes()
        refused = 0
        for at in rng.integers(0, len(whole), 60):
            changed = whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :]
            for data in (changed, whole[:at]):
                (tmp_path / f"bad_{name}").write_bytes(data)
                try:
                    reader(tmp_path / f"bad_{name}")
                except UserError:
                    refused += 1
        assert refused > 40


def test_export_of_a_sens_scene(tmp_path: Path) -> None:
    """Every fifth frame but those without a pose; pictures as they are; the same places in the room."""
    raw = make_sens_scene(tmp_path / "raw/scene0001_00", frames=21, lost=(5, 6))
    assert scannet_export.main(tmp_path / "raw", tmp_path / "out", every=5) == 1
    out = tmp_path / "out/scene0001_00"
    numbers = [0, 10, 15, 20]
    pictures = [f"{n:05}.{suffix}" for n in numbers for suffix in ("jpg", "png", "txt")]
    assert sorted(snapshot(out)) == sorted([*pictures, "intrinsic.txt", "depth_intrinsic.txt", "scene.json"])
    assert rgbd.find_layout(out) == rgbd.POSED
    assert (out / "00015.jpg").read_bytes() == (raw / "color/15.jpg").read_bytes()
    assert (out / "00015.png").read_bytes() == (raw / "depth/15.png").read_bytes()
    frames = rgbd.list_frames(out)
    assert [frame.pose.tolist() for frame in frames] == [camera_pose(n).tolist() for n in numbers]
    assert rgbd.read_axis_align(out) == pytest.approx(ALIGN)
    assert rgbd.find_intrinsics(out, frames[0])[1:] == (pytest.approx(intrinsic_matrix(64, 48)), True)


def test_export_of_plain_frames(tmp_path: Path) -> None:
    """PNG colour becomes JPEG; scale and lenses of single views are kept."""
    raw = make_plain_scene(tmp_path / "raw/room", frames=3, own_intrinsics=True)
    assert scannet_export.main(tmp_path / "raw", tmp_path / "out", every=1) == 1
    out = tmp_path / "out/room"
    assert rgbd.read_depth_scale(out) == 500
    assert rgbd.read_axis_align(out) == pytest.approx(np.eye(4))
    for before, after in zip(rgbd.list_frames(raw), rgbd.list_frames(out), strict=True):
        assert np.array_equal(rgbd.find_intrinsics(raw, before).matrix, rgbd.find_intrinsics(out, after).matrix)
        colors = (np.asarray(rgbd.read_color(frame.color), np.float32) for frame in (before, after))
        assert np.abs(np.subtract(*colors)).max() < 8


def test_export_again_changes_nothing_and_does_what_is_missing(tmp_path: Path) -> None:
    for i in range(3):
        make_sens_scene(tmp_path / f"raw/scene000{i}_00", frames=3)
    (tmp_path / "raw/scene0001_00/depth/1.png").unlink()
    with pytest.raises(UserError, match=r"raw: 1 scenes failed, as: .*1\.png: no such file"):
        scannet_export.main(tmp_path / "raw", tmp_path / "out", every=1)
    before = snapshot(tmp_path / "out")
    assert {name.split("/")[0] for name in before} == {"scene0000_00", "scene0002_00"}
    depth_image(64, 48).save(tmp_path / "raw/scene0001_00/depth/1.png")
    assert scannet_export.main(tmp_path / "raw", tmp_path / "out", every=1) == 1
    after = snapshot(tmp_path / "out")
    assert {name: after[name] for name in before} == before
    assert scannet_export.main(tmp_path / "raw", tmp_path / "out", every=1) == 0
    assert snapshot(tmp_path / "out") == after
    with pytest.raises(UserError, match="scene0000_00: is there with every=1, not 2"):
        scannet_export.main(tmp_path / "raw", tmp_path / "out", every=2)
    with pytest.raises(UserError, match="every=0"):
        scannet_export.main(tmp_path / "raw", tmp_path / "out", every=0)


def test_a_killed_export_leaves_no_half_scene(tmp_path: Path) -> None:
    make_sens_scene(tmp_path / "raw/scene0000_00", frames=4)
    program = (
        "import os, shutil, signal, sys\n"
        "from pathlib import Path\n"
        "from pave.media import scannet_export as rgbd_export\n"
        "copy, done = shutil.copyfile, []\n"
        "def dying(*a):\n"
        "    done.append(copy(*a))\n"
        "    len(done) == 5 and os.kill(os.getpid(), signal.SIGKILL)\n"
        "shutil.copyfile = dying\n"
        "rgbd_export.main(Path(sys.argv[1]), Path(sys.argv[2]), 1)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "raw"), str(tmp_path / "out")]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert len(snapshot(tmp_path / "out")) >= 5
    with pytest.raises(UserError, match="no RGB-D scenes"):
        rgbd.find_scenes(tmp_path / "out")
    assert scannet_export.main(tmp_path / "raw", tmp_path / "out", every=1) == 1
    assert os.listdir(tmp_path / "out") == ["scene0000_00"]
    assert len(rgbd.list_frames(tmp_path / "out/scene0000_00")) == 4
