"""Files of the small embedded world: real mp4 clips with sound, and one line of facts a clip.

videos/<clip>.mp4          the clip
exo/<clip>/behind.mp4      channel exo: the same scene from behind
depth/<clip>/              channel depth: RGB-D pictures in the plain layout of `pave.media.rgbd`
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.video.frame import PictureType
from PIL import Image
from tqdm import tqdm

from pave.media.rgbd import DEPTH_SCALE
from pave.media.worker_pool import one_thread_each
from pave.sideworld.channels import INTRINSICS, KEY_FRAMES, POSE, VIEWS, behind, depth, with_channels
from pave.sideworld.scene import FPS, RATE, SIZE, SPLITS, Scene, clip_seed, from_record, render, scene, sound, to_record
from pave.types import NotThere, UserError
from pave.utils.atomic import atomic_file, atomic_folder


class Record(NamedTuple):
    """One line of scenes_<split>.jsonl."""

    video: str
    """Path of the clip below the root."""
    scene: Scene


def write(scene: Scene, path: Path) -> None:
    """Write one clip as mp4 (H.264, AAC 32 kbit/s mono), on one thread; the name appears only when it is whole."""
    _write_video(path, render(scene), sound(scene), KEY_FRAMES if scene.flashes else ())


def write_behind(scene: Scene, path: Path) -> None:
    """Write what the camera behind sees, without sound."""
    _write_video(path, behind(scene))


def write_depth(scene: Scene, path: Path) -> None:
    """Write a folder of RGB-D pictures; it appears only when it is whole."""
    colors = render(replace(scene, flashes=()), VIEWS)
    with atomic_folder(path) as part:
        np.savetxt(part / "intrinsic.txt", INTRINSICS, "%g")
        for i, (color, metres) in enumerate(zip(colors, depth(scene, VIEWS))):
            Image.fromarray(color).save(part / f"{i}.png")
            Image.fromarray(np.rint(metres * DEPTH_SCALE).astype(np.uint16)).save(part / f"{i}.depth.png")
            np.savetxt(part / f"{i}.pose.txt", POSE, "%g")


def _write_video(path: Path, pictures: np.ndarray, wave: np.ndarray | None = None, alone: Sequence[int] = ()) -> None:
    """Pictures uint8[T,H,W,3] and a wave float32[N] as mp4; those in `alone` are coded as if there were no others."""
    # zerolatency: x264's look-ahead now and then encodes the same pictures differently.
    options = {"preset": "veryfast", "tune": "zerolatency"}
    # Constant quality spends bits by what came before; constant quantisers do not.
    options |= {"qp": "18", "forced-idr": "1"} if len(alone) else {"crf": "18"}
    with atomic_file(path) as part, av.open(str(part), "w", format="mp4") as out:
        video = out.add_stream("libx264", rate=FPS, options=options)
        video.width, video.height, video.pix_fmt, video.thread_count = SIZE, SIZE, "yuv420p", 1
        if wave is not None:  # before the first packet is written
            audio = out.add_stream("aac", rate=RATE, layout="mono", options={"aac_coder": "fast"})
            audio.bit_rate = 32_000
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if number in alone:
                frame.pict_type = PictureType.I
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        if wave is not None:
            track = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
            # With a first time of 0 the file says how long AAC's lead-in is; without, the sound would come 64 ms late.
            track.sample_rate, track.pts, track.time_base = RATE, 0, Fraction(1, RATE)
            out.mux(audio.encode(track))
            out.mux(audio.encode(None))


def make(
    root: Path, clips_train: int, clips_test: int, seed: int, workers: int, channels: Sequence[str] = ("audio",)
) -> None:
    """Write the files of all clips and root/scenes_{train,test}.jsonl; files already there are kept.

    Raises UserError if root holds another world.
    """
    (root / "videos").mkdir(parents=True, exist_ok=True)
    missing = []
    for split, count in zip(SPLITS, (clips_train, clips_test)):
        records = [
            Record(f"videos/{split}_{i:05d}.mp4", with_channels(scene(clip_seed(split, seed, i)), channels))
            for i in range(count)
        ]
        _claim(root / f"scenes_{split}.jsonl", records)
        missing += [job for record in records for job in _jobs(record, root) if not job.path.exists()]
    bar = tqdm(total=len(missing), desc="clips", unit="clip")
    if workers <= 1:
        for job in missing:
            _run(job)
            bar.update()
    else:
        with one_thread_each(), multiprocessing.get_context("spawn").Pool(workers) as pool:
            for _ in pool.imap_unordered(_run, missing, chunksize=4):
                bar.update()
    bar.close()


def read_scenes(path: Path) -> list[Record]:
    """Read scenes_<split>.jsonl; raises UserError if it is absent or broken."""
    if not path.is_file():
        raise NotThere(f"{path}: not found; make the sideworld clips first")
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            raw = json.loads(line)
            records.append(Record(raw["video"], from_record(raw["scene"])))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: line {number} is no sideworld scene ({error!r}); make the clips again in an empty folder"
            ) from error
    return records


def _claim(path: Path, records: list[Record]) -> None:
    """Write the facts before any clip, so that clips of two worlds never mix in one folder."""
    text = "".join(json.dumps({"video": r.video, "scene": to_record(r.scene)}) + "\n" for r in records)
    if not path.exists():
        with atomic_file(path) as part:
            part.write_text(text, encoding="utf-8")
    elif path.read_text(encoding="utf-8") != text:
        raise UserError(
            f"{path}: holds another world, expected {len(records)} clips of this seed; take another folder or delete it"
        )


class _Job(NamedTuple):
    write: Callable[[Scene, Path], None]
    scene: Scene
    path: Path


def _jobs(record: Record, root: Path) -> list[_Job]:
    """What belongs to a clip."""
    video, one = root / record.video, record.scene
    jobs = [_Job(write, one, video)]
    if "exo" in one.channels:
        jobs.append(_Job(write_behind, one, root / "exo" / video.stem / "behind.mp4"))
    if "depth" in one.channels:
        jobs.append(_Job(write_depth, one, root / "depth" / video.stem))
    return jobs


def _run(job: _Job) -> None:
    job.write(job.scene, job.path)
