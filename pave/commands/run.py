"""Commands that train a model, score it and ask it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pave.commands import add_checkpoint, add_config, command, pair


def add(commands: Any) -> None:
    """Their parsers."""
    for parser in (_train, _eval, _score, _compare, _demo):
        parser(commands)


def _train(commands: Any) -> None:
    def run(a: argparse.Namespace) -> None:
        from pave import config, train

        train.main(config.load(a.config, a.overrides), a.out or Path("runs", a.config.stem), a.resume)

    parser = command(commands, "train", "train patches and LoRA on a frozen base", run)
    add_config(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: runs/ and the config's name")
    parser.add_argument("--resume", action="store_true", help="go on from the newest finished checkpoint in DIR")


def _eval(commands: Any) -> None:
    def run(a: argparse.Namespace) -> str:
        from pave import evaluate

        options = evaluate.Options(a.split, a.shuffle_sides, a.batch, a.workers, a.max_new_tokens, a.keep_going)
        model, config = evaluate.load_model(a.ckpt, a.base, a.overrides, a.base_only, a.device)
        return evaluate.table(evaluate.main(model, config, a.out or a.ckpt / "eval", options))

    parser = command(commands, "eval", "answer the questions of a split and score them", run)
    add_checkpoint(parser)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. data.root=DIR")
    parser.add_argument("--out", type=Path, metavar="DIR", help="for predictions and metrics; default: CKPT/eval")
    parser.add_argument("--split", default=None)
    parser.add_argument("--base-only", action="store_true", help="the frozen base, without patches and LoRA")
    parser.add_argument("--shuffle-sides", action="store_true", help="give each question another video's side-channels")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2, help="processes that decode videos")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--keep-going", action="store_true", help="count unreadable questions as wrong, do not stop")


def _score(commands: Any) -> None:
    def run(a: argparse.Namespace) -> str:
        from pave import evaluate

        return evaluate.table(evaluate.score(a.predictions, a.task, a.split, a.data))

    parser = command(commands, "score", "score a predictions file again", run)
    parser.add_argument("predictions", type=Path)
    parser.add_argument("--task", required=True, help="see `pave list tasks`")
    parser.add_argument("--data", type=Path, required=True, metavar="ROOT")
    parser.add_argument("--split", default="test")


def _compare(commands: Any) -> None:
    def run(a: argparse.Namespace) -> str:
        from pave import compare

        return compare.main(a.base, a.patched, a.shuffled, a.out)

    parser = command(commands, "compare", "chance, base, patched, shuffled side-channels: a table and a plot", run)
    for name in ("base", "patched", "shuffled"):
        parser.add_argument(
            f"--{name}", type=Path, required=True, metavar="DIR", help="a folder that `pave eval` wrote"
        )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for report.md and report.png")


def _demo(commands: Any) -> None:
    def run(a: argparse.Namespace) -> str:
        from pave import demo, evaluate

        model, config = evaluate.load_model(a.ckpt, a.base, a.overrides, False, a.device)
        features = {name: Path(file) for name, file in (pair(text) for text in a.features)}
        return demo.answer(model, config, a.video, a.ask, features, frozenset(a.without), a.max_new_tokens)

    parser = command(commands, "demo", "ask one question about one video", run)
    add_checkpoint(parser)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. sides.audio.encoder=FILE")
    parser.add_argument("--video", type=Path, required=True, metavar="FILE")
    parser.add_argument("--ask", required=True, metavar="QUESTION")
    parser.add_argument("--features", action="append", default=[], metavar="SIDE=FILE", help="ready feature file")
    parser.add_argument("--without", action="append", default=[], metavar="SIDE", help="leave a side-channel out")
    parser.add_argument("--max-new-tokens", type=int, default=128)
