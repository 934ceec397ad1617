"""Commands that make what is learnt from: clips, features, the small world's own models."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from pave.commands import command


def add(commands: Any) -> None:
    """Their parsers."""
    for parser in (_prepare, _extract, _pretrain):
        parser(commands)


def _prepare(commands: Any) -> None:
    def run(a: argparse.Namespace) -> None:
        from pave.io import sideworld_files

        sideworld_files.make(a.out, a.train, a.test, a.seed, a.workers)

    parser = command(commands, "prepare", "make the clips of the small world (real mp4 files with sound)", run)
    parser.add_argument("task", choices=["sideworld"])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--train", type=int, default=1500, help="clips to learn from")
    parser.add_argument("--test", type=int, default=200, help="clips to be asked about")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)


def _extract(commands: Any) -> None:
    def run(a: argparse.Namespace) -> None:
        from pave import extract

        extract.main(a.side, a.videos, a.out, a.weights, a.device)

    parser = command(commands, "extract", "make the feature files of one side-channel from videos", run)
    parser.add_argument("side", help="see `pave list sides`")
    parser.add_argument("--videos", type=Path, required=True, metavar="DIR|LIST")
    parser.add_argument("--out", type=Path, required=True, metavar="STORE")
    parser.add_argument("--weights", required=True, metavar="FILE", help="of the encoder; asset:NAME ships with pave")
    parser.add_argument("--device", default="cpu")


def _pretrain(commands: Any) -> None:
    def run(a: argparse.Namespace) -> None:
        from pave.pretrain import audio, base

        {"base": base, "audio": audio}[a.what].learn(a.out, seed=a.seed)

    parser = command(commands, "pretrain", "make the small world's base or audio tower again", run)
    parser.add_argument("what", choices=["base", "audio"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
