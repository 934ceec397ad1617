"""Write the files of the small world: mp4 clips with sound, and one line of facts for each clip.

videos/<clip>.mp4          the clip
exo/<clip>/behind.mp4      channel exo: the same scene from behind
depth/<clip>/              channel depth: RGB-D images in the plain layout of `pave.media.rgbd`
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.video.frame import PictureType
from PIL import Image
from tqdm import tqdm

from pave.media.rgbd import DEPTH_SCALE
from pave.media.worker_pool import one_thread_per_process
from pave.sideworld.channels import DEPTH_FRAMES, INTRINSICS, KEY_FRAMES, POSE, depth_maps, render_behind, with_channels
from pave.sideworld.scene import (
    FPS,
    SAMPLE_RATE,
    SIZE,
    SPLITS,
    Scene,
    clip_seed,
    draw_scene,
    from_record,
    render,
    synthesize_sound,
    to_record,
)
from pave.types import MissingAnnotations, UserError
from pave.utils.atomic import atomic_file, atomic_folder, write_text
from pave.utils.json_files import read_jsonl


class Record(NamedTuple):
    """One line of scenes_<split>.jsonl."""

    video: str
    """Path of the clip below the root."""
    scene: Scene


def write_clip(scene: Scene, path: Path) -> None:
    """Write one clip as mp4 (H.264, AAC 32 kbit/s mono), on one thread, whole or not at all."""
    _write_video(path, render(scene), synthesize_sound(scene), KEY_FRAMES if scene.flashes else ())


def write_behind(scene: Scene, path: Path) -> None:
    """Write the view from behind, without sound."""
    _write_video(path, render_behind(scene))


def write_depth(scene: Scene, path: Path) -> None:
    """Write a folder of RGB-D images, whole or not at all."""
    colors = render(replace(scene, flashes=()), DEPTH_FRAMES)
    with atomic_folder(path) as temporary:
        np.savetxt(temporary / "intrinsic.txt", INTRINSICS, "%g")
        for i, (color, metres) in enumerate(zip(colors, depth_maps(scene, len(DEPTH_FRAMES)))):
            Image.fromarray(color).save(temporary / f"{i}.png")
            Image.fromarray(np.rint(metres * DEPTH_SCALE).astype(np.uint16)).save(temporary / f"{i}.depth.png")
            np.savetxt(temporary / f"{i}.pose.txt", POSE, "%g")


def _write_video(
    path: Path, frames: np.ndarray, wave: np.ndarray | None = None, independent: Sequence[int] = ()
) -> None:
    """Write frames uint8[T,H,W,3] and a wave float32[N] as mp4; no other frame changes a pixel of the `independent`."""
    # zerolatency: x264's look-ahead now and then encodes the same frames differently.
    options = {"preset": "veryfast", "tune": "zerolatency"}
    # Constant quality spends bits by what came before; constant quantisers do not.
    options |= {"qp": "18", "forced-idr": "1"} if len(independent) else {"crf": "18"}

    with atomic_file(path) as temporary, av.open(str(temporary), "w", format="mp4") as out:
        video = out.add_stream("libx264", rate=FPS, options=options)
        video.width, video.height, video.pix_fmt, video.thread_count = SIZE, SIZE, "yuv420p", 1
        if wave is not None:  # before the first packet is written
            audio = out.add_stream("aac", rate=SAMPLE_RATE, layout="mono", options={"aac_coder": "fast"})
            audio.bit_rate = 32_000

        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if number in independent:
                frame.pict_type = PictureType.I
            out.mux(video.encode(frame))
        out.mux(video.encode(None))

        if wave is not None:
            track = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
            # With a first time of 0 the file says how long AAC's lead-in is; without, the sound would come 64 ms late.
            track.sample_rate, track.pts, track.time_base = SAMPLE_RATE, 0, Fraction(1, SAMPLE_RATE)
            out.mux(audio.encode(track))
            out.mux(audio.encode(None))


def make_clips(
    root: Path, clips_train: int, clips_test: int, seed: int, workers: int, channels: Sequence[str] = ("audio",)
) -> None:
    """Write the files of all clips and root/scenes_{train,test}.jsonl; existing files are kept.

    Raises UserError if root holds another world.
    """
    (root / "videos").mkdir(parents=True, exist_ok=True)
    jobs: list[_Job] = []
    for split, count in zip(SPLITS, (clips_train, clips_test)):
        records = []
        for i in range(count):
            scene = with_channels(draw_scene(clip_seed(split, seed, i)), channels)
            records.append(Record(f"videos/{split}_{i:05d}.mp4", scene))
        _claim_world(root / f"scenes_{split}.jsonl", records)
        for record in records:
            jobs += [job for job in _clip_jobs(record, root) if not job.path.exists()]

    with tqdm(total=len(jobs), desc="clips", unit="clip") as bar:
        if workers <= 1:
            for job in jobs:
                _run(job)
                bar.update()
            return
        with one_thread_per_process(), multiprocessing.get_context("spawn").Pool(workers) as pool:
            for _ in pool.imap_unordered(_run, jobs, chunksize=4):
                bar.update()


def read_scenes(path: Path) -> list[Record]:
    """Read scenes_<split>.jsonl. Raises UserError if it is absent or broken."""
    if not path.is_file():
        raise MissingAnnotations(f"{path}: not found; make the sideworld clips first")
    return read_jsonl(path, "a sideworld scene; make the clips again in an empty folder", _record)


def _record(line: dict[str, Any]) -> Record:
    return Record(line["video"], from_record(line["scene"]))


def _claim_world(path: Path, records: Sequence[Record]) -> None:
    """Write the facts before any clip, so that clips of two worlds never mix in one folder."""
    lines = [json.dumps({"video": record.video, "scene": to_record(record.scene)}) for record in records]
    text = "".join(f"{line}\n" for line in lines)
    if not path.exists():
        write_text(path, text)
    elif path.read_text(encoding="utf-8") != text:
        raise UserError(
            f"{path}: holds another world, expected {len(records)} clips of this seed; take another folder or delete it"
        )


class _Job(NamedTuple):
    write: Callable[[Scene, Path], None]
    scene: Scene
    path: Path


def _clip_jobs(record: Record, root: Path) -> list[_Job]:
    """The files that belong to a clip."""
    video, scene = root / record.video, record.scene
    jobs = [_Job(write_clip, scene, video)]
    if "exo" in scene.channels:
        jobs.append(_Job(write_behind, scene, root / "exo" / video.stem / "behind.mp4"))
    if "depth" in scene.channels:
        jobs.append(_Job(write_depth, scene, root / "depth" / video.stem))
    return jobs


def _run(job: _Job) -> None:
    job.write(job.scene, job.path)
