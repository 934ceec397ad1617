"""Frames of videos against a plain decode, the official choice of frames (tests/golden/module/frames), and faults."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from helpers.media_files import BUNNY, cut, every_frame, pattern, tone, write_clip
from helpers.paths import GOLDEN, read_json
from PIL import Image

from pave.media.container import stated_size
from pave.media.frame_sampling import FrameSampling, uniform
from pave.media.video import VideoInfo, read_clip, read_info
from pave.types import UserError

RULE = read_json(GOLDEN / "module/frames/frame_sampling.json")


@pytest.mark.parametrize("row", RULE["eval_load_video"], ids=lambda r: f"{r['total_frames']}-{r['avg_fps']}")
def test_uniform_is_the_official_evaluation_rule(row: dict[str, Any]) -> None:
    index = uniform(row["total_frames"], row["for_get_frames_num"])
    assert index.tolist() == row["frame_idx"]
    assert ",".join(f"{seconds:.2f}s" for seconds in index / row["avg_fps"]) == row["frame_time"]


@pytest.mark.parametrize("row", RULE["image_folder"], ids=lambda r: f"{len(r['files'])} files")
def test_folder_is_the_official_rule(row: dict[str, Any], tmp_path: Path) -> None:
    for i, name in enumerate(row["files"]):
        Image.new("RGB", (16, 16), (i * 6,) * 3).save(tmp_path / name, format="JPEG", quality=95)
    clip = read_clip(tmp_path, 32)
    assert list(clip.frames.shape) == row["shape"]
    assert clip.frames.dtype == np.uint8
    shown = [row["files"][round(picture.mean() / 6)] for picture in clip.frames]
    assert shown == row["order"]
    assert len(list(tmp_path.iterdir())) == len(row["files"]), "nothing may be written into the folder"


def test_frames_a_second() -> None:
    """By hand: as the rate gives, at most `max_frames`, no more than there are, a multiple, one at least."""

    def count(sampling: FrameSampling, *videos: int) -> list[int]:
        return [len(sampling.choose(num_frames, 25.0)) for num_frames in videos]

    assert count(FrameSampling(32), 75) == count(FrameSampling(32, multiple=8), 3) == [32]
    assert count(FrameSampling(32, 2.0), 75, 37, 2000, 5) == [6, 2, 32, 1]
    assert count(FrameSampling(32, 2.0, 4), 75, 37, 2000) == [4, 4, 32]
    assert count(FrameSampling(30, 2.0, 4), 2000) == [28]
    assert count(FrameSampling(32, 60.0), 20) == [20]


def test_a_clip_at_a_rate(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4")  # 60 frames at 25 a second
    clip, expected = read_clip(path, FrameSampling(32, 2.0, 2)), every_frame(path)
    np.testing.assert_array_equal(clip.frames, np.stack([expected[i] for i in (0, 19, 39, 59)]))
    np.testing.assert_allclose(clip.seconds, np.array([0, 19, 39, 59]) / 25)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(10):
        Image.new("RGB", (16, 16), (i * 20,) * 3).save(pictures / f"{i}.jpg", quality=95)
    assert read_clip(pictures, FrameSampling(32, 0.5)).seconds.tolist() == [0, 2, 4, 6, 9]
    native = FrameSampling(native_rule=lambda num_frames, fps: np.array([num_frames - 1, int(fps)]))
    assert read_clip(pictures, native).seconds.tolist() == [9, 1]


def test_folder_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="found none"):
        read_clip(tmp_path)
    Image.new("RGB", (16, 16)).save(tmp_path / "0.jpg")
    Image.new("RGB", (8, 16)).save(tmp_path / "1.jpg")
    with pytest.raises(UserError, match=r"1\.jpg.*\(16, 8\).*\(16, 16\)"):
        read_clip(tmp_path)
    (tmp_path / "1.jpg").write_bytes((tmp_path / "0.jpg").read_bytes()[:200])
    with pytest.raises(UserError, match=r"1\.jpg.*not a readable picture"):
        read_clip(tmp_path)
    (tmp_path / "front.jpg").touch()
    with pytest.raises(UserError, match=r"front\.jpg"):
        read_clip(tmp_path)


def edit_list(folder: Path) -> Path:
    """Starts 17 frames late, in the middle of a group of pictures."""
    path = write_clip(folder / "edit.mp4")
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 16
    struct.pack_into(">i", data, at, struct.unpack_from(">i", data, at)[0] + 17 * 512)
    path.write_bytes(data)
    return path


def open_start(folder: Path) -> Path:
    """Cut at its third key frame; the frames shown before that one need what was cut away."""
    source, path = write_clip(folder / "whole.mkv", 90, "mpeg2video", bf="2"), folder / "open.mkv"
    with av.open(source) as old, av.open(path, "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        keys = 0
        for packet in old.demux(video=0):
            keys += packet.is_keyframe
            if keys > 2 and packet.size:
                packet.stream = stream
                new.mux(packet)
    return path


def two_sizes(folder: Path) -> Path:
    """A bare stream without time stamps, which changes its size on the way."""
    path, wide, tall = folder / "two.h264", folder / "a.h264", folder / "b.h264"
    path.write_bytes(write_clip(wide, 20).read_bytes() + write_clip(tall, 20, size=(64, 96)).read_bytes())
    return path


FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}
CLIPS: dict[str, Callable[[Path], Path]] = {
    "b_frames": lambda f: write_clip(f / "a.mp4", bf="3"),
    "open_gop": lambda f: write_clip(f / "a.mp4", 90, **{"x264-params": "open-gop=1:keyint=15:bframes=3:scenecut=0"}),
    "hevc": lambda f: write_clip(f / "a.mp4", codec="libx265", **{"x265-params": "log-level=0"}),
    "two_reordered_keys": lambda f: write_clip(f / "a.mp4", **{"x264-params": "keyint=2:bframes=1:scenecut=0"}),
    "fragments": lambda f: write_clip(f / "a.mp4", container=FRAGMENTS),
    "edit_list": edit_list,
    "uneven_times": lambda f: write_clip(f / "a.mp4", times=np.cumsum(np.arange(60) % 7 * 20 + 10).tolist()),
    "matroska": lambda f: write_clip(f / "a.mkv"),
    "vp9": lambda f: write_clip(f / "a.webm", codec="libvpx-vp9", deadline="realtime"),
    "open_start": open_start,
    "avi_mpeg4": lambda f: write_clip(f / "a.avi", codec="mpeg4", bf="2"),
    "avi_h264": lambda f: write_clip(f / "a.avi"),
    "transport": lambda f: write_clip(f / "a.ts"),
    "gif": lambda f: write_clip(f / "a.gif", codec="gif"),
    "two_sizes": two_sizes,
    "one_frame": lambda f: write_clip(f / "a.mp4", 1),
}


@pytest.mark.parametrize("name", CLIPS)
def test_frames_equal_a_plain_decode(name: str, tmp_path: Path) -> None:
    path = CLIPS[name](tmp_path)
    expected = every_frame(path)
    assert read_info(path).frames == len(expected)
    for count in (5, 16, len(expected) + 20):
        clip = read_clip(path, count)
        assert clip.frames.dtype == np.uint8
        for i, picture in zip(uniform(len(expected), count), clip.frames, strict=True):
            np.testing.assert_array_equal(picture, expected[i], err_msg=f"frame {i}")


def test_times_are_those_of_the_file(tmp_path: Path) -> None:
    times = np.cumsum(np.arange(60) % 7 * 20 + 10)
    path = write_clip(tmp_path / "a.mkv", times=times.tolist())
    np.testing.assert_allclose(read_clip(path, 16).seconds, (times - times[0])[uniform(60, 16)] / 1000, atol=1e-9)
    np.testing.assert_allclose(read_clip(write_clip(tmp_path / "b.avi"), 60).seconds, np.arange(60) / 25)


def test_bunny() -> None:
    clip, expected = read_clip(BUNNY), every_frame(BUNNY)
    assert clip.frames.shape == (32, 720, 1280, 3)
    assert all((picture == expected[i]).all() for i, picture in zip(uniform(132, 32), clip.frames))
    np.testing.assert_allclose(clip.seconds, uniform(132, 32) / 25)
    assert read_info(BUNNY) == VideoInfo(5.28, 25.0, 1280, 720, 132, True)


@pytest.mark.parametrize(("matrix", "turns"), [((0, 1, -1, 0), 3), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)])
def test_rotation(matrix: tuple[int, ...], turns: int, tmp_path: Path) -> None:
    """(a, b, c, d) sends a pixel at (x right, y down) to (a x + c y, b x + d y): (0, 1, -1, 0) turns clockwise."""
    path = write_clip(tmp_path / "a.mp4", 10)
    upright = read_clip(path, 5).frames
    data = bytearray(path.read_bytes())
    a, b, c, d = (v * 65536 for v in matrix)
    struct.pack_into(">9i", data, data.index(b"tkhd") + 44, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    np.testing.assert_array_equal(read_clip(path, 5).frames, np.rot90(upright, turns, axes=(1, 2)))
    assert (read_info(path).height, read_info(path).width) == np.rot90(upright[0], turns).shape[:2]


def damage(path: Path, packets: slice, mask: int) -> Path:
    """Some video packets with one byte in the middle, or with mask 0 all after the first 8, changed."""
    with av.open(path) as container:
        ranges = [(packet.pos + 8, packet.size - 8) for packet in container.demux(video=0) if packet.size][packets]
    data = bytearray(path.read_bytes())
    for start, length in ranges:
        if mask:
            data[start + length // 2] ^= mask
        else:
            data[start : start + length] = b"\xff" * length
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("name", "codec", "mask"),
    [
        pytest.param("a.mp4", "libx264", 0, id="decoder stops"),
        pytest.param("a.mp4", "libx264", 0x55, id="decoder hides the damage"),
        pytest.param("a.mkv", "mpeg2video", 0, id="decoder leaves frames out"),
    ],
)
def test_damage_is_an_error_where_it_matters(name: str, codec: str, mask: int, tmp_path: Path) -> None:
    """In a group of pictures that holds none of the key frames it is never read, so it does no harm."""
    path = write_clip(tmp_path / name, 60, codec)
    expected = every_frame(path)
    damage(path, slice(26, 32), mask)
    first, last = read_clip(path, 2).frames
    assert (first == expected[0]).all()
    assert (last == expected[-1]).all()
    for count in (3, 60):
        with pytest.raises(UserError, match=rf"{name}: damaged"):
            read_clip(path, count)


def cover_only(folder: Path) -> Path:
    path = folder / "song.mp4"
    with av.open(path, "w") as out:
        audio, cover = out.add_stream("aac", rate=16_000, layout="mono"), out.add_stream("mjpeg", rate=25)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        out.mux(cover.encode(av.VideoFrame.from_ndarray(pattern(0, (32, 32)))))
        out.mux(cover.encode(None))
        frame = av.AudioFrame.from_ndarray(tone(1), "fltp", "mono")
        frame.sample_rate = 16_000
        out.mux(audio.encode(frame))
        out.mux(audio.encode(None))
    return path


def no_frames(folder: Path) -> Path:
    path = folder / "empty.mkv"
    with av.open(path, "w") as out:
        video, audio = out.add_stream("libx264", rate=25), out.add_stream("aac", rate=16_000, layout="mono")
        video.width, video.height = 96, 64
        frame = av.AudioFrame.from_ndarray(tone(1), "fltp", "mono")
        frame.sample_rate = 16_000
        out.mux(audio.encode(frame))
        out.mux(audio.encode(None))
    return path


def text(folder: Path) -> Path:
    path = folder / "notes.mp4"
    path.write_text("not a video\n" * 100)
    return path


FAST = {"movflags": "faststart"}
FAULTS: list[tuple[str, str, Callable[[Path], Path]]] = [
    ("missing", "no such file", lambda f: f / "missing.mp4"),
    ("text", "no media", text),
    ("sound only", "no video track", lambda f: write_clip(f / "a.mp4", codec=None, sound=tone(1))),
    ("cover picture only", "no video track", cover_only),
    ("no frames", "no frames", no_frames),
    ("cut mp4", "cut off", lambda f: cut(write_clip(f / "a.mp4"))),
    ("cut mp4, index first", "cut off", lambda f: cut(write_clip(f / "a.mp4", container=FAST), 0.9)),
    ("cut mp4, fragments", "cut off", lambda f: cut(write_clip(f / "a.mp4", container=FRAGMENTS))),
    ("cut mkv", "cut off", lambda f: cut(write_clip(f / "a.mkv"), 0.95)),
    ("cut avi", "cut off", lambda f: cut(write_clip(f / "a.avi", codec="mpeg4"))),
    ("cut flv", "cut off", lambda f: cut(write_clip(f / "a.flv"))),
    ("cut mpg", "cut off", lambda f: cut(write_clip(f / "a.mpg", codec="mpeg2video", bf="2"))),
]


@pytest.mark.parametrize(("message", "make"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_faults_are_one_line_that_names_the_file(message: str, make: Callable[[Path], Path], tmp_path: Path) -> None:
    path = make(tmp_path)
    for call in (read_clip, read_info):
        with pytest.raises(UserError, match=message) as error:
            call(path)
        assert str(error.value).startswith(f"{path}: ")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.webm", "a.flv"])
def test_a_complete_file_is_as_long_as_it_states(name: str, tmp_path: Path) -> None:
    path = write_clip(tmp_path / name, codec="libvpx" if name.endswith("webm") else "libx264")
    assert 0 < stated_size(path) <= path.stat().st_size
    if not name.endswith("mp4"):  # MP4 keeps its last boxes for what is not media
        assert stated_size(path) == path.stat().st_size


def test_tags_need_not_be_utf8(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", 10)
    data = path.read_bytes()
    assert b"Lavf" in data
    path.write_bytes(data.replace(b"Lavf", b"\xff\xfe\xff\xfe"))
    assert len(read_clip(path, 5).frames) == 5
