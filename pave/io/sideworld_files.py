"""Files of the small embedded world: real mp4 clips with sound, and one line of facts a clip."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
from tqdm import tqdm

from pave.io.atomic import atomic_file
from pave.io.sideworld import FPS, RATE, SIZE, SPLITS, Scene, clip_seed, from_record, render, scene, sound, to_record
from pave.types import UserError


class Record(NamedTuple):
    """One line of scenes_<split>.jsonl."""

    video: str
    """Path of the clip below the root."""
    scene: Scene


def write(scene: Scene, path: Path) -> None:
    """Write one clip as mp4 (H.264, AAC 32 kbit/s mono), on one thread; the name appears only when it is whole."""
    with atomic_file(path) as part, av.open(str(part), "w", format="mp4") as out:
        # zerolatency: x264's look-ahead now and then encodes the same pictures differently.
        options = {"crf": "18", "preset": "veryfast", "tune": "zerolatency"}
        video = out.add_stream("libx264", rate=FPS, options=options)
        video.width, video.height, video.pix_fmt, video.thread_count = SIZE, SIZE, "yuv420p", 1
        audio = out.add_stream("aac", rate=RATE, layout="mono", options={"aac_coder": "fast"})
        audio.bit_rate = 32_000
        for picture in render(scene):
            out.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(video.encode(None))
        wave = av.AudioFrame.from_ndarray(sound(scene)[None], format="fltp", layout="mono")
        # With a first time of 0 the file says how long AAC's lead-in is; without, the sound would come 64 ms late.
        wave.sample_rate, wave.pts, wave.time_base = RATE, 0, Fraction(1, RATE)
        out.mux(audio.encode(wave))
        out.mux(audio.encode(None))


def make(root: Path, clips_train: int, clips_test: int, seed: int, workers: int) -> None:
    """Write root/videos/*.mp4 and root/scenes_{train,test}.jsonl; clips already there are kept.

    Raises UserError if root holds another world.
    """
    (root / "videos").mkdir(parents=True, exist_ok=True)
    missing = []
    for split, count in zip(SPLITS, (clips_train, clips_test)):
        records = [
            Record(f"videos/{split}_{index:05d}.mp4", scene(clip_seed(split, seed, index))) for index in range(count)
        ]
        _claim(root / f"scenes_{split}.jsonl", records)
        missing += [(record.scene, root / record.video) for record in records if not (root / record.video).exists()]
    bar = tqdm(total=len(missing), desc="clips", unit="clip")
    if workers <= 1:
        for job in missing:
            _write_job(job)
            bar.update()
    else:
        with _one_thread_each(), multiprocessing.get_context("spawn").Pool(workers) as pool:
            for _ in pool.imap_unordered(_write_job, missing, chunksize=4):
                bar.update()
    bar.close()


def read_scenes(path: Path) -> list[Record]:
    """Read scenes_<split>.jsonl; raises UserError if it is absent or broken."""
    if not path.is_file():
        raise UserError(f"{path}: not found; make the sideworld clips first")
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


def _write_job(job: tuple[Scene, Path]) -> None:
    write(*job)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Started processes read the variable when they import numpy; more threads than cores make all of them slower."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
