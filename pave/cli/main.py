"""The command line: parses, runs the chosen command, prints what it returns, turns user errors into one line."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from pave.cli import data_commands, inspect_commands, run_commands, weights_commands
from pave.cli.arguments import Help


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; exit code 1 and one line for everything the user can mend."""
    arguments = _parse(argv)
    logging.basicConfig(level=logging.INFO if _is_first_rank() else logging.WARNING, format="%(message)s")
    from pave.types import UserError

    try:
        text = arguments.run(arguments)
    except UserError as error:
        # A data loader's worker wraps the message in its traceback; the message is its last line.
        print(f"pave: {str(error).splitlines()[-1].removeprefix('pave.types.UserError: ')}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"pave: {error}", file=sys.stderr)
        return 1
    text, code = text if isinstance(text, tuple) else (text, 0)
    if text is not None:
        print(text)
    return code


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Arguments, with `key=value` overrides anywhere on the line."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    strange = [text for text in rest if "=" not in text or text.startswith("-") or "overrides" not in arguments]
    if strange:
        parser.error(f"unrecognized arguments: {' '.join(strange)}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    return arguments


def _parser() -> argparse.ArgumentParser:
    text = "Adapt a frozen video language model to sound, depth, further cameras or more frames."
    parser = argparse.ArgumentParser(prog="pave", description=text, formatter_class=Help)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for group in (data_commands, run_commands, weights_commands, inspect_commands):
        group.add(commands)
    return parser


def _is_first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


if __name__ == "__main__":
    sys.exit(main())
