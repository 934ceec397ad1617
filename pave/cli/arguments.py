"""What the commands share: their type, their common arguments, and the arguments of version 0.1."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from pave.types import UserError

Result = str | tuple[str, int] | None
"""The text to print, and the exit code where it is not 0."""


class Command(NamedTuple):
    """One command. `run` imports what it needs, so that help stays instant."""

    name: str
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], Result]


class CommandGroup(NamedTuple):
    """Commands of two words, such as `pave bench patch`."""

    name: str
    help: str
    commands: tuple[Command, ...]


class RenamedArgument(NamedTuple):
    """An argument of version 0.1, as words that follow each other, and what to type now."""

    command: str
    words: tuple[str, ...]
    replacement: str


SIDE_REPORT = "pave side-report --base DIR --patched DIR --shuffled DIR --out DIR"
RENAMED_ARGUMENTS = (
    RenamedArgument("eval", ("--side",), "pave eval --perturb NAME=KIND"),
    RenamedArgument("profile", ("--side",), "pave profile --side-shape NAME=STEPSxTOKENS"),
    RenamedArgument("doctor", ("--root",), "pave doctor --data DIR"),
    RenamedArgument("list", ("zoo",), "pave list checkpoints"),
    RenamedArgument("convert", ("--to", "ppllava"), "pave init ppllava SRC OUT --clip DIR"),
    RenamedArgument("convert", ("--to", "video_panda"), "pave init video_panda SRC OUT"),
    RenamedArgument("compare", ("--base",), SIDE_REPORT),
    RenamedArgument("compare", ("--patched",), SIDE_REPORT),
    RenamedArgument("compare", ("--shuffled",), SIDE_REPORT),
)


def find_renamed(argv: Sequence[str]) -> str | None:
    """Return one line that names the present form of an argument of version 0.1, or None if there is none."""
    # An option and its value may be one word, --to=ppllava, or two.
    line = " ".join(word.replace("=", " ", 1) if word.startswith("--") else word for word in argv) + " "
    for command, words, replacement in RENAMED_ARGUMENTS:
        if line.startswith(f"{command} ") and f" {' '.join(words)} " in line:
            return f"{command} {' '.join(words)} is now: {replacement}"
    return None


def check_device(name: str) -> None:
    """Raises UserError if CUDA is asked for and missing."""
    if name.startswith("cuda"):
        import torch

        if not torch.cuda.is_available():
            raise UserError(f"--device {name}: no CUDA device found; use cpu")


def split_pair(text: str) -> tuple[str, str]:
    """Split NAME=FILE. Raises UserError."""
    name, equals_sign, file = text.partition("=")
    if not equals_sign:
        raise UserError(f"'{text}': expected SIDE=FILE, for example audio=clip.safetensors")
    return name, file


def split_files(texts: Sequence[str]) -> dict[str, Path]:
    """Split several SIDE=FILE into files by side-channel. Raises UserError."""
    return {name: Path(file) for name, file in map(split_pair, texts)}


def add_config(parser: argparse.ArgumentParser) -> None:
    """A config file, and settings that replace its own."""
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a YAML file, see configs/")
    add_overrides(parser, "e.g. train.learning_rate=1e-4")


def add_overrides(parser: argparse.ArgumentParser, example: str) -> None:
    """Settings as key=value, anywhere on the line."""
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=example)


def add_checkpoint(parser: argparse.ArgumentParser, example: str = "e.g. sides.audio.encoder=FILE") -> None:
    """A trained folder, its base, settings and where to run."""
    text = "a folder of `pave train`, an official one, or the zip of one"
    parser.add_argument("--ckpt", type=Path, required=True, metavar="DIR", help=text)
    parser.add_argument("--base", default=None, metavar="PATH", help="folder of the base, if it moved")
    parser.add_argument("--device", default=None, help="default: cuda if there is one")
    add_trust(parser)
    add_overrides(parser, example)


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Whether a trained folder may name plugins from outside pave."""
    text = "run bases, sides and tasks from outside pave that a trained folder names"
    parser.add_argument("--trust-plugins", action="store_true", help=text)


def add_features(parser: argparse.ArgumentParser) -> None:
    """Files of side-channels for one video."""
    text = "features, or media to extract them from"
    parser.add_argument("--features", action="append", default=[], metavar="SIDE=FILE", help=text)


def add_patches(parser: argparse.ArgumentParser) -> None:
    """Further trained folders, whose patches are added to the model."""
    parser.add_argument("--patch", action="append", default=[], metavar="NAME=DIR", help="a further trained folder")


def add_extraction(parser: argparse.ArgumentParser) -> None:
    """Which features to extract, from which media, with which encoder."""
    # One core for each worker, shared with the node's other processes; more than eight rarely help.
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    parser.add_argument("side", help="see `pave list sides`; doc/sides/ has a page on each")
    add_overrides(parser, "options of the side, e.g. fps=4")
    text = "a list has one path on each line"
    parser.add_argument("--videos", type=Path, required=True, metavar="DIR|LIST", help=text)
    text = "of the encoder; asset:NAME ships with pave"
    parser.add_argument("--weights", required=True, metavar="FILE", help=text)
    parser.add_argument("--device", default="cpu", help="cuda under torchrun is each process's own GPU")
    text = "processes that decode; 0: none"
    parser.add_argument("--workers", type=int, default=min(8, max(1, cores)), help=text)


def add_questions(parser: argparse.ArgumentParser) -> None:
    """A data set, a split and which of its questions count."""
    parser.add_argument("--data", type=Path, required=True, metavar="ROOT")
    parser.add_argument("--split", default="test")
    add_coverage(parser)


def add_coverage(parser: argparse.ArgumentParser) -> None:
    """Which questions of a split count."""
    parser.add_argument("--limit", type=int, metavar="N", help="the first N questions only")
    parser.add_argument("--allow-missing", action="store_true", help="questions without an answer count as wrong")


def add_bench(parser: argparse.ArgumentParser, repetitions: int, text: str) -> None:
    """How a benchmark runs and where its rows go."""
    parser.add_argument("--reps", type=int, default=repetitions, help=text)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the rows as .json or .csv")
