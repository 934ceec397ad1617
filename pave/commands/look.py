"""Commands that show what there is and what it costs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pave.commands import add_config, command


def add(commands: Any) -> None:
    """Their parsers."""
    for parser in (_list, _show, _bench):
        parser(commands)


def _list(commands: Any) -> None:
    def run(a: argparse.Namespace) -> str:
        from pave import plug, zoo

        if a.kind == "zoo":
            return zoo.table()
        kinds = [a.kind] if a.kind else ["sides", "bases", "tasks"]
        return "\n".join(f"{kind}: {', '.join(plug.names(kind))}" for kind in kinds)

    parser = command(commands, "list", "what there is: sides, bases, tasks; zoo: the released checkpoints", run)
    parser.add_argument("kind", nargs="?", choices=["sides", "bases", "tasks", "zoo"])


def _show(commands: Any) -> None:
    def run(a: argparse.Namespace) -> str:
        from pave import checkpoint, config, train

        resolved = config.load(a.config, a.overrides)
        train.check_arguments(resolved)
        return f"{config.dump(resolved)}\n{train.describe(checkpoint.create(resolved, weights=False))}"

    parser = command(commands, "show", "a resolved config, what is frozen and what trains; needs no weights", run)
    add_config(parser)


def _bench(commands: Any) -> None:
    def run(a: argparse.Namespace) -> str:
        from pave import bench

        rows = bench.patch(a.threads, a.device, a.rows or None, dtype=a.dtype, reps=a.reps, against=a.against)
        if a.out:
            bench.save(rows, a.out)
        return bench.table(rows)

    parser = command(commands, "bench", "time and memory of the patch at the published shapes", run)
    parser.add_argument("what", choices=["patch"])
    parser.add_argument(
        "rows", nargs="*", metavar="ROW", help="patterns such as 'audio-*' or '*-b4-train'; default: all"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--reps", type=int, default=5, help="timed runs of each row; the median counts")
    parser.add_argument("--against", type=Path, metavar="FILE", help="figures to print beside ours")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the rows as .json or .csv")
