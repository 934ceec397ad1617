"""The command line: parse, run one command, print its result; a user error is one line."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pave.cli import data_commands, inspect_commands, run_commands, weights_commands
from pave.cli.arguments import Command, CommandGroup, check_device, find_renamed
from pave.types import UserError

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

COMMANDS: tuple[Command | CommandGroup, ...] = (
    *data_commands.COMMANDS,
    *run_commands.COMMANDS,
    *weights_commands.COMMANDS,
    *inspect_commands.COMMANDS,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns 1 after one line for a user error, 2 for an argument that is unknown or was renamed."""
    words = list(sys.argv[1:] if argv is None else argv)
    if renamed := find_renamed(words):
        print(f"pave: {renamed}", file=sys.stderr)
        return 2

    arguments = parse_arguments(words)
    is_first_rank = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(level=logging.INFO if is_first_rank else logging.WARNING, format="%(message)s")

    try:
        check_device(vars(arguments).get("device") or "cpu")
        result = arguments.run(arguments)
    except UserError as error:
        # A data loader's worker wraps the message in its traceback; the message is its last line.
        print(f"pave: {str(error).splitlines()[-1].removeprefix('pave.types.UserError: ')}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"pave: {error}", file=sys.stderr)
        return 1

    text, code = result if isinstance(result, tuple) else (result, 0)
    if text is not None:
        print(text)
    return code


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line, with `key=value` overrides anywhere on it."""
    parser = make_parser()
    arguments, remaining = parser.parse_known_args(argv)

    takes_overrides = "overrides" in arguments
    unknown = [word for word in remaining if "=" not in word or word.startswith("-") or not takes_overrides]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if takes_overrides:
        arguments.overrides = [*arguments.overrides, *remaining]
    return arguments


def make_parser() -> argparse.ArgumentParser:
    text = "Adapt a frozen video language model to sound, depth, further cameras or more frames."
    parser = argparse.ArgumentParser(prog="pave", description=text, formatter_class=_HelpFormatter)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    for entry in COMMANDS:
        if isinstance(entry, Command):
            _add_command(subparsers, entry)
            continue
        group = _add_parser(subparsers, entry.name, entry.help)
        kinds = group.add_subparsers(required=True, metavar="WHAT")
        for command in entry.commands:
            _add_command(kinds, command)
    return parser


def _add_command(subparsers: Subparsers, command: Command) -> None:
    parser = _add_parser(subparsers, command.name, command.help)
    command.add_arguments(parser)
    parser.set_defaults(run=command.run)


def _add_parser(subparsers: Subparsers, name: str, text: str) -> argparse.ArgumentParser:
    return subparsers.add_parser(name, help=text, description=text, formatter_class=_HelpFormatter)


class _HelpFormatter(argparse.HelpFormatter):
    """Wide enough for one line an option."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=100)


if __name__ == "__main__":
    sys.exit(main())
