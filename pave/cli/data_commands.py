"""Commands that make what is learnt from: clips, features, the small world's own models."""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path
from typing import Any

from pave.cli.arguments import Help, add_extraction, command

CONVERTED = ("avqa", "avsd", "egoexo", "llava_video", "music_avqa", "scanqa", "sqa3d", "videomme")
"""Tasks whose raw files the release converts."""


def add(commands: Any) -> None:
    """Their parsers."""
    for parser in (_prepare, _extract, _doctor, _pretrain):
        parser(commands)


def _prepare(commands: Any) -> None:
    text = "make or convert the files of a data set"
    parser = commands.add_parser("prepare", help=text, description=text, formatter_class=Help)
    kinds = parser.add_subparsers(required=True, metavar="WHAT")
    for kind in (_sideworld, _rgbd):
        kind(kinds)
    for task in CONVERTED:
        _task(kinds, task)


def _sideworld(kinds: Any) -> None:
    def run(a: argparse.Namespace) -> None:
        from pave.sideworld import files

        files.make(a.out, a.train, a.test, a.seed, a.workers, a.channels)

    parser = command(kinds, "sideworld", "make the clips of the small world (real mp4 files with sound)", run)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--train", type=int, default=1500, help="clips to learn from")
    parser.add_argument("--test", type=int, default=200, help="clips to be asked about")
    parser.add_argument("--seed", type=int, default=0)
    channels = ["audio", "dense", "exo", "depth"]
    parser.add_argument("--channels", nargs="+", choices=channels, default=["audio"], help="that questions are about")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)


def _task(kinds: Any, task: str) -> None:
    def run(a: argparse.Namespace) -> str:
        from pave.utils import registry

        return "\n".join(registry.load("tasks", task).prepare(a.raw, a.out))

    parser = command(kinds, task, f"the release's files from the raw ones; see doc/datasets/{task}.md", run)
    parser.add_argument("--raw", type=Path, required=True, metavar="DIR", help="as downloaded")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")


def _rgbd(kinds: Any) -> None:
    def run(a: argparse.Namespace) -> str:
        from pave.media import scannet_export

        return f"{scannet_export.main(a.raw, a.out, a.every)} scenes written"

    text = "ScanNet as SensReader exports it, or plain RGB-D frames, in the posed_images layout"
    parser = command(kinds, "rgbd", text, run)
    parser.add_argument("--raw", type=Path, required=True, metavar="DIR", help="a scene, or a folder with scenes in it")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--every", type=int, default=10, help="take each N-th frame")


def _extract(commands: Any) -> None:
    def run(a: argparse.Namespace) -> None:
        from pave.data import extraction

        part = extraction.parts(os.environ)
        device = f"cuda:{os.environ['LOCAL_RANK']}" if a.device == "cuda" and "LOCAL_RANK" in os.environ else a.device
        settings = extraction.Settings(device, a.workers, a.timeout, a.dtype)
        extraction.main(a.side, a.videos, a.out, a.weights, a.overrides, settings, part)

    parser = command(commands, "extract", "make the feature files of one side-channel from videos", run)
    add_extraction(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="STORE")
    parser.add_argument("--dtype", default="float16", choices=["float16", "bfloat16", "float32"], help="as stored")
    parser.add_argument("--timeout", type=float, default=600, metavar="S", help="for reading one item")


def _doctor(commands: Any) -> None:
    def run(a: argparse.Namespace) -> tuple[str, int]:
        from pave.data import checks
        from pave.types import UserError

        if a.store is None and a.task is None:
            raise UserError("nothing to check: give a STORE, or --task T --root DIR, or both")
        reports = []
        if a.store is not None:
            reports.append(checks.check_store(a.store, a.side, a.videos, a.dim))
        if a.task is not None:
            reports.append(checks.check_task(a.task, a.root, a.split, a.store))
        problems = sum(report.problems for report in reports)
        lines = [line for report in reports for line in report.lines]
        return "\n".join([*lines, f"{problems} problems"]), int(problems > 0)

    parser = command(commands, "doctor", "what features and data sets lack; exit code 1 if anything", run)
    parser.add_argument("store", nargs="?", type=Path, metavar="STORE", help="of `pave extract`, or published features")
    parser.add_argument("--side", help="of published .pt features, which do not say it")
    parser.add_argument(
        "--videos", type=Path, metavar="DIR|LIST", help="what was extracted: is all there, and still the same?"
    )
    parser.add_argument("--dim", type=int, help="width that the features must have; default: the commonest")
    parser.add_argument("--task", help="see `pave list tasks`")
    parser.add_argument("--root", type=Path, default=Path("data"), metavar="DIR", help="of the task's data")
    parser.add_argument("--split", action="append", default=[], help="default: all")


def _pretrain(commands: Any) -> None:
    def run(a: argparse.Namespace) -> None:
        from pave.training.tiny_models import audio_tower, llava_onevision, other_bases

        own: dict[str, Any] = {"base": llava_onevision.learn, "audio": audio_tower.learn}
        own.get(a.what, partial(other_bases.learn, a.what))(a.out, seed=a.seed)

    parser = command(commands, "pretrain", "make the small world's base or audio tower again, or another base", run)
    parser.add_argument("what", choices=["base", "audio", "qwen2_5_vl", "video_llava", "video_panda", "ppllava"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
