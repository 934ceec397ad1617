"""Commands that train a model, score it and ask it."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from typing import Any

from pave.cli.arguments import add_checkpoint, add_config, command, pair


def add(commands: Any) -> None:
    """Their parsers."""
    for parser in (_train, _eval, _score, _judge, _compare, _demo, _serve):
        parser(commands)


def _train(commands: Any) -> None:
    def run(a: argparse.Namespace) -> None:
        from pave import config
        from pave.training import train

        train.main(config.load(a.config, a.overrides), a.out or Path("runs", a.config.stem), a.resume)

    parser = command(commands, "train", "train patches and LoRA on a frozen base", run)
    add_config(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: runs/ and the config's name")
    parser.add_argument("--resume", action="store_true", help="go on from the newest finished checkpoint in DIR")


def _eval(commands: Any) -> None:
    def run(a: argparse.Namespace) -> str:
        from pave.checkpoints import load as load_checkpoint
        from pave.data import extraction
        from pave.evaluation import evaluate

        options = evaluate.Options(
            a.split,
            a.shuffle_sides,
            a.batch,
            a.workers,
            a.max_new_tokens,
            a.keep_going,
            a.side,
            a.limit,
            a.allow_missing,
            extraction.parts(os.environ),
        )
        device = load_checkpoint.device(a.device)
        model, config = load_checkpoint.load_model(a.ckpt, a.base, a.overrides, a.base_only, device, a.trust_plugins)
        return evaluate.main(model, config, a.out or a.ckpt / "eval", options)

    parser = command(commands, "eval", "answer the questions of a split and score them", run)
    add_checkpoint(parser)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. data.root=DIR")
    parser.add_argument("--out", type=Path, metavar="DIR", help="for answers and scores, goes on; default: CKPT/eval")
    parser.add_argument("--split", default=None)
    parser.add_argument("--base-only", action="store_true", help="the frozen base, without patches and LoRA")
    parser.add_argument(
        "--side",
        action="append",
        default=[],
        metavar="SIDE=PROBE",
        help="drop, shuffle, freeze, shift:2.0 (seconds) or noise:10dB, to see what the model really uses",
    )
    parser.add_argument("--shuffle-sides", action="store_true", help="give each question another video's side-channels")
    parser.add_argument("--batch", type=int, default=8, help="questions at once")
    parser.add_argument("--workers", type=int, default=2, help="processes that decode videos")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--keep-going", action="store_true", help="count unreadable questions as wrong, do not stop")
    _add_coverage(parser)


def _score(commands: Any) -> None:
    def run(a: argparse.Namespace) -> str:
        from pave.evaluation import score

        return score.table(score.score(a.predictions, a.task, a.split, a.data, a.limit, a.allow_missing))

    parser = command(commands, "score", "score answers again", run)
    parser.add_argument("predictions", type=Path, help="a predictions file, or a folder of `pave eval`")
    parser.add_argument("--task", required=True, help="see `pave list tasks`")
    parser.add_argument("--data", type=Path, required=True, metavar="ROOT")
    parser.add_argument("--split", default="test")
    _add_coverage(parser)


def _judge(commands: Any) -> None:
    def run(a: argparse.Namespace) -> tuple[str, int]:
        from pave.evaluation import judge

        given = {field.name: getattr(a, field.name) for field in dataclasses.fields(judge.Options)}
        options = judge.Options(**{**given, "price": tuple(a.price) if a.price else None})
        return judge.main(a.predictions, a.task, a.split, a.data, options)

    parser = command(commands, "judge", "let a language model judge free answers, and score them", run)
    parser.add_argument("predictions", type=Path, help="a predictions file, or a folder of `pave eval`")
    parser.add_argument("--task", required=True, help="one with free answers, see doc/datasets/open_qa.md")
    parser.add_argument("--data", type=Path, required=True, metavar="ROOT")
    parser.add_argument("--split", default="test")
    text = "a URL that speaks OpenAI's protocol, as https://host/v1; a model's folder; recorded judgements"
    parser.add_argument("--judge", required=True, metavar="URL|DIR|FILE", help=text)
    parser.add_argument("--model", metavar="NAME", help="of the model behind a URL")
    parser.add_argument("--key-env", default="OPENAI_API_KEY", metavar="NAME", help="the variable that holds the key")
    text = 'on top of {"temperature": 0, "max_tokens": 64}; null takes one away'
    parser.add_argument("--body", default="{}", metavar="JSON", help=text)
    parser.add_argument("--words", type=Path, metavar="DIR", help="published scripts to take the judge's prompt from")
    parser.add_argument("--parallel", type=int, default=8, metavar="N", help="requests at once")
    parser.add_argument("--tries", type=int, default=1, metavar="N", help="replies to ask for until one can be read")
    parser.add_argument("--timeout", type=float, default=60, metavar="S", help="seconds without a byte")
    parser.add_argument("--retries", type=int, default=6, metavar="N", help="of a request that fails")
    text = "what a million tokens cost, to count the cost"
    parser.add_argument("--price", type=float, nargs=2, metavar=("IN", "OUT"), help=text)
    parser.add_argument("--max-cost", type=float, metavar="X", help="send nothing more once so much is spent")
    parser.add_argument("--device", default="cpu", help="of a local model")
    _add_coverage(parser)


def _add_coverage(parser: argparse.ArgumentParser) -> None:
    """Which questions count."""
    parser.add_argument("--limit", type=int, metavar="N", help="the first N questions only")
    parser.add_argument("--allow-missing", action="store_true", help="questions without an answer count as wrong")


def _compare(commands: Any) -> None:
    def run(a: argparse.Namespace) -> str:
        from pave.evaluation import compare_runs, side_channel_report
        from pave.types import UserError

        three = [a.base, a.patched, a.shuffled]
        if len(a.runs) == 2 and a.task and a.data and not any(three):
            return compare_runs.main(a.runs[0], a.runs[1], a.task, a.split, a.data, a.out)
        if a.runs or not all(three):
            raise UserError("give two runs with --task and --data, or --base, --patched and --shuffled")
        return side_channel_report.main(a.base, a.patched, a.shuffled, a.out)

    text = "two runs on the same questions: intervals, a paired test, flipped answers; or what a side-channel adds"
    parser = command(commands, "compare", text, run)
    parser.add_argument("runs", type=Path, nargs="*", metavar="RUN", help="A and B: folders that `pave eval` wrote")
    parser.add_argument("--task", help="of A and B, see `pave list tasks`")
    parser.add_argument("--data", type=Path, metavar="ROOT", help="of A and B")
    parser.add_argument("--split", default="test", help="of A and B")
    for name in ("base", "patched", "shuffled"):
        parser.add_argument(f"--{name}", type=Path, metavar="DIR", help="instead: three runs on the small world")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for the report and its plot")


def _demo(commands: Any) -> None:
    def run(a: argparse.Namespace) -> str:
        from pave.inference import demo
        from pave.inference.session import load

        patches = [pair(text) for text in a.patch]
        model, config = load(a.ckpt, a.base, a.overrides, a.device, patches, a.trust_plugins)
        features = {name: Path(file) for name, file in (pair(text) for text in a.features)}
        return demo.talk(model, config, a.video, a.ask, features, frozenset(a.without), a.max_new_tokens, a.beside)

    parser = command(commands, "demo", "ask about one video", run)
    add_checkpoint(parser)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. sides.audio.encoder=FILE")
    parser.add_argument("--video", type=Path, required=True, metavar="FILE")
    parser.add_argument("--ask", action="append", required=True, metavar="QUESTION", help="again: follows up")
    parser.add_argument("--beside", action="store_true", help="also what the base answers, without patches and LoRA")
    parser.add_argument("--patch", action="append", default=[], metavar="NAME=DIR", help="a further trained folder")
    parser.add_argument(
        "--features", action="append", default=[], metavar="SIDE=FILE", help="features, or media to take it from"
    )
    parser.add_argument("--without", action="append", default=[], metavar="SIDE", help="leave a side-channel out")
    parser.add_argument("--max-new-tokens", type=int, default=128)


def _serve(commands: Any) -> None:
    def run(a: argparse.Namespace) -> None:
        from pave.inference.server import app

        options = app.Options(
            a.host,
            a.port,
            a.max_mb,
            a.max_seconds,
            a.max_new_tokens,
            a.waiting,
            [pair(text) for text in a.patch],
            a.examples,
            a.trust_plugins,
        )
        app.main(a.ckpt, a.base, a.overrides, a.device, options)

    parser = command(commands, "serve", "a page in the browser, and endpoints, to ask about videos", run)
    add_checkpoint(parser)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. sides.audio.encoder=FILE")
    parser.add_argument("--patch", action="append", default=[], metavar="NAME=DIR", help="a further trained folder")
    parser.add_argument("--host", default="127.0.0.1", help="another lets other machines in, without a password")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--max-mb", type=int, default=100, metavar="N", help="of the files of one request")
    parser.add_argument("--max-seconds", type=float, default=600, metavar="S", help="of a video or sound track")
    parser.add_argument("--max-new-tokens", type=int, default=512, help="that a request may ask for")
    parser.add_argument("--waiting", type=int, default=8, metavar="N", help="requests that may wait; more are refused")
    parser.add_argument(
        "--examples", type=Path, metavar="DIR", help="videos to offer; default: clips of the small world"
    )
