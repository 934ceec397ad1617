"""The commands: a module for each kind. A command imports what it needs when it runs, and returns what to print."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

Handler = Callable[[argparse.Namespace], str | tuple[str, int] | None]
"""What to print, and the exit code where it is not 0."""


class Help(argparse.HelpFormatter):
    """Wide enough for one line an option."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=100)


def command(commands: Any, name: str, text: str, run: Handler) -> argparse.ArgumentParser:
    """The parser of a new command."""

    def checked(arguments: argparse.Namespace) -> str | tuple[str, int] | None:
        check_device(getattr(arguments, "device", None) or "cpu")
        return run(arguments)

    parser = commands.add_parser(name, help=text, description=text, formatter_class=Help)
    parser.set_defaults(run=checked)
    return parser


def check_device(name: str) -> None:
    """Raises UserError where CUDA is asked for and not there."""
    if name.startswith("cuda"):
        import torch

        from pave.types import UserError

        if not torch.cuda.is_available():
            raise UserError(f"--device {name}: no CUDA device found; use cpu")


def add_config(parser: argparse.ArgumentParser) -> None:
    """A config file with settings on top."""
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a YAML file, see configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. train.learning_rate=1e-4")


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """A trained folder, its base and where to run."""
    parser.add_argument(
        "--ckpt", type=Path, required=True, metavar="DIR", help="a folder of `pave train`, or a released one"
    )
    parser.add_argument("--base", default=None, metavar="PATH", help="where the base is, if it moved")
    parser.add_argument("--device", default=None, help="default: cuda if there is one")
    add_trust(parser)


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Whether what a trained folder names may be anybody's code."""
    text = "let bases, sides and tasks that a trained folder names run though they are not of pave"
    parser.add_argument("--trust-plugins", action="store_true", help=text)


def add_extraction(parser: argparse.ArgumentParser) -> None:
    """What is extracted, with what, where."""
    # A core each, shared with the node's other processes; more than eight rarely help.
    workers = min(8, max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
    parser.add_argument("side", help="see `pave list sides`; doc/sides/ has a page on each")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="options of the side, e.g. fps=4")
    parser.add_argument("--videos", type=Path, required=True, metavar="DIR|LIST", help="a list has a path a line")
    parser.add_argument("--weights", required=True, metavar="FILE", help="of the encoder; asset:NAME ships with pave")
    parser.add_argument("--device", default="cpu", help="cuda under torchrun is each process's own GPU")
    parser.add_argument("--workers", type=int, default=workers, help="processes that decode; 0: none")


def pair(text: str) -> tuple[str, str]:
    """SIDE=FILE, taken apart. Raises UserError."""
    from pave.types import UserError

    name, found, file = text.partition("=")
    if not found:
        raise UserError(f"'{text}': expected SIDE=FILE, for example audio=clip.safetensors")
    return name, file
