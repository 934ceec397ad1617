"""Commands that prepare data: clips, data sets, features, the small world's own models."""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path

from pave.cli.arguments import Command, CommandGroup, add_extraction
from pave.types import UserError

CONVERTED_TASKS = ("avqa", "avsd", "egoexo", "llava_video", "music_avqa", "scanqa", "sqa3d", "videomme")
"""Tasks with `prepares`, written down because help must not import them; a test compares."""


def _add_sideworld(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--train", type=int, default=1500, help="clips to learn from")
    parser.add_argument("--test", type=int, default=200, help="clips to be asked about")
    parser.add_argument("--seed", type=int, default=0)
    channels = ["audio", "dense", "exo", "depth"]
    parser.add_argument("--channels", nargs="+", choices=channels, default=["audio"], help="that questions are about")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)


def _run_sideworld(arguments: argparse.Namespace) -> None:
    from pave.sideworld import files

    files.make_clips(
        arguments.out, arguments.train, arguments.test, arguments.seed, arguments.workers, arguments.channels
    )


def _add_raw_and_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--raw", type=Path, required=True, metavar="DIR", help="as downloaded")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")


def _run_task(task: str, arguments: argparse.Namespace) -> str:
    from pave.tasks.base import get_task

    return "\n".join(get_task(task).prepare(arguments.raw, arguments.out))


def _add_rgbd(parser: argparse.ArgumentParser) -> None:
    _add_raw_and_out(parser)
    parser.add_argument("--every", type=int, default=10, help="take each N-th frame")


def _run_rgbd(arguments: argparse.Namespace) -> str:
    from pave.media import scannet_export

    return f"{scannet_export.main(arguments.raw, arguments.out, arguments.every)} scenes written"


def _add_extract(parser: argparse.ArgumentParser) -> None:
    add_extraction(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="STORE")
    parser.add_argument("--dtype", default="float16", choices=["float16", "bfloat16", "float32"], help="as stored")
    parser.add_argument("--timeout", type=float, default=600, metavar="S", help="for reading one item")


def _run_extract(arguments: argparse.Namespace) -> None:
    from pave.data import extraction

    device = arguments.device
    if device == "cuda" and "LOCAL_RANK" in os.environ:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    settings = extraction.Settings(device, arguments.workers, arguments.timeout, arguments.dtype)

    extraction.main(
        arguments.side,
        arguments.videos,
        arguments.out,
        arguments.weights,
        arguments.overrides,
        settings,
        extraction.process_part(os.environ),
    )


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    text = "of `pave extract`, or published features"
    parser.add_argument("store", nargs="?", type=Path, metavar="STORE", help=text)
    parser.add_argument("--side", help="of published .pt features, which do not say it")
    text = "what was extracted: is all there, and still the same?"
    parser.add_argument("--videos", type=Path, metavar="DIR|LIST", help=text)
    parser.add_argument("--dim", type=int, help="width that the features must have; default: the commonest")
    parser.add_argument("--task", help="see `pave list tasks`")
    parser.add_argument("--data", type=Path, default=Path("data"), metavar="DIR", help="of the task")
    parser.add_argument("--split", action="append", default=[], help="default: all")


def _run_doctor(arguments: argparse.Namespace) -> tuple[str, int]:
    from pave.data import checks

    if arguments.store is None and arguments.task is None:
        raise UserError("nothing to check: give a STORE, or --task T --data DIR, or both")

    reports = []
    if arguments.store is not None:
        reports.append(checks.check_store(arguments.store, arguments.side, arguments.videos, arguments.dim))
    if arguments.task is not None:
        reports.append(checks.check_task(arguments.task, arguments.data, arguments.split, arguments.store))

    problems = sum(report.problems for report in reports)
    lines = [line for report in reports for line in report.lines]
    return "\n".join([*lines, f"{problems} problems"]), int(problems > 0)


def _add_pretrain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", choices=["base", "audio", "qwen2_5_vl", "video_llava", "video_panda", "ppllava"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)


def _run_pretrain(arguments: argparse.Namespace) -> None:
    from pave.training.tiny_models import audio_tower, llava_onevision, other_bases

    if arguments.model == "base":
        llava_onevision.pretrain(arguments.out, seed=arguments.seed)
    elif arguments.model == "audio":
        audio_tower.pretrain(arguments.out, seed=arguments.seed)
    else:
        other_bases.pretrain(arguments.model, arguments.out, seed=arguments.seed)


_SIDEWORLD_HELP = "make the clips of the small world (real mp4 files with sound)"
_RGBD_HELP = "ScanNet as SensReader exports it, or plain RGB-D frames, in the posed_images layout"
_PREPARE = (
    Command("sideworld", _SIDEWORLD_HELP, _add_sideworld, _run_sideworld),
    Command("rgbd", _RGBD_HELP, _add_rgbd, _run_rgbd),
    *(
        Command(
            task,
            f"the official files from the raw ones; see doc/datasets/{task}.md",
            _add_raw_and_out,
            partial(_run_task, task),
        )
        for task in CONVERTED_TASKS
    ),
)
COMMANDS = (
    CommandGroup("prepare", "make or convert the files of a data set", _PREPARE),
    Command("extract", "make the feature files of one side-channel from videos", _add_extract, _run_extract),
    Command("doctor", "what features and data sets lack; exit code 1 if anything", _add_doctor, _run_doctor),
    Command(
        "pretrain", "make the small world's base or audio tower again, or another base", _add_pretrain, _run_pretrain
    ),
)
