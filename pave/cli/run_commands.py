"""Commands that train a model, evaluate it and answer questions with it."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path

from pave.cli.arguments import (
    Command,
    add_checkpoint,
    add_config,
    add_coverage,
    add_features,
    add_patches,
    add_questions,
    split_files,
    split_pair,
)


def _add_train(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: runs/ and the config's name")
    parser.add_argument("--resume", action="store_true", help="go on from the newest finished checkpoint in DIR")


def _run_train(arguments: argparse.Namespace) -> None:
    from pave import config
    from pave.training import train

    out = arguments.out or Path("runs", arguments.config.stem)
    train.main(config.load(arguments.config, arguments.overrides), out, arguments.resume)


def _add_eval(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser, "e.g. data.root=DIR")
    text = "a config that says what an official folder does not: its side-channels and data"
    parser.add_argument("--recipe", type=Path, metavar="CONFIG", help=text)
    parser.add_argument("--out", type=Path, metavar="DIR", help="for answers and scores, goes on; default: CKPT/eval")
    parser.add_argument("--split", default=None)
    parser.add_argument("--base-only", action="store_true", help="the frozen base, without patches and LoRA")
    text = "drop, shuffle, freeze, shift:2.0 (seconds) or noise:10dB, to see what the model really uses"
    parser.add_argument("--perturb", action="append", default=[], metavar="NAME=KIND", help=text)
    parser.add_argument("--shuffle-sides", action="store_true", help="give each question another video's side-channels")
    parser.add_argument("--batch", type=int, default=8, help="questions at once")
    parser.add_argument("--workers", type=int, default=2, help="processes that decode videos")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--keep-going", action="store_true", help="count unreadable questions as wrong, do not stop")
    add_coverage(parser)


def _run_eval(arguments: argparse.Namespace) -> str:
    from pave.checkpoints import load as load_checkpoint
    from pave.checkpoints.archive import checkpoint_folder
    from pave.data import extraction
    from pave.evaluation import evaluate

    options = evaluate.Options(
        split=arguments.split,
        perturb=arguments.perturb,
        shuffle_sides=arguments.shuffle_sides,
        batch=arguments.batch,
        workers=arguments.workers,
        max_new_tokens=arguments.max_new_tokens,
        keep_going=arguments.keep_going,
        limit=arguments.limit,
        allow_missing=arguments.allow_missing,
        part=extraction.process_part(os.environ),
    )
    model, config = load_checkpoint.load_model(
        arguments.ckpt,
        arguments.base,
        arguments.overrides,
        arguments.base_only,
        arguments.device,
        arguments.trust_plugins,
        arguments.recipe,
    )
    return evaluate.main(model, config, arguments.out or checkpoint_folder(arguments.ckpt) / "eval", options)


def _add_score(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("predictions", type=Path, help="a predictions file, or a folder of `pave eval`")
    parser.add_argument("--task", required=True, help="see `pave list tasks`")
    add_questions(parser)


def _run_score(arguments: argparse.Namespace) -> str:
    from pave.evaluation import score

    result = score.score(
        arguments.predictions,
        arguments.task,
        arguments.split,
        arguments.data,
        arguments.limit,
        arguments.allow_missing,
    )
    return score.table(result)


def _add_judge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("predictions", type=Path, help="a predictions file, or a folder of `pave eval`")
    parser.add_argument("--task", required=True, help="one with free answers, see doc/datasets/open_qa.md")
    add_questions(parser)
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
    text = "price of a million tokens, to count the cost"
    parser.add_argument("--price", type=float, nargs=2, metavar=("IN", "OUT"), help=text)
    parser.add_argument("--max-cost", type=float, metavar="X", help="send nothing more once so much is spent")
    parser.add_argument("--device", default="cpu", help="of a local model")


def _run_judge(arguments: argparse.Namespace) -> tuple[str, int]:
    from pave.evaluation import judge

    # Every option of the judge is an argument of the same name.
    values = {field.name: vars(arguments)[field.name] for field in dataclasses.fields(judge.Options)}
    if arguments.price is not None:
        values["price"] = tuple(arguments.price)
    return judge.main(arguments.predictions, arguments.task, arguments.split, arguments.data, judge.Options(**values))


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", type=Path, nargs=2, metavar="RUN", help="A and B: folders that `pave eval` wrote")
    parser.add_argument("--task", required=True, help="see `pave list tasks`")
    parser.add_argument("--data", type=Path, required=True, metavar="ROOT")
    parser.add_argument("--split", default="test")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for the report and its plot")


def _run_compare(arguments: argparse.Namespace) -> str:
    from pave.evaluation import compare_runs

    first, second = arguments.runs
    return compare_runs.main(first, second, arguments.task, arguments.split, arguments.data, arguments.out)


def _add_side_report(parser: argparse.ArgumentParser) -> None:
    for name, text in (
        ("base", "run of the base alone"),
        ("patched", "run of the trained folder"),
        ("shuffled", "run with the side-channels of other videos"),
    ):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="DIR", help=text)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for the report and its plot")


def _run_side_report(arguments: argparse.Namespace) -> str:
    from pave.evaluation import side_channel_report

    return side_channel_report.main(arguments.base, arguments.patched, arguments.shuffled, arguments.out)


def _add_demo(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser)
    parser.add_argument("--video", type=Path, required=True, metavar="FILE")
    parser.add_argument("--ask", action="append", required=True, metavar="QUESTION", help="again: follows up")
    parser.add_argument("--beside", action="store_true", help="also what the base answers, without patches and LoRA")
    add_patches(parser)
    add_features(parser)
    parser.add_argument("--without", action="append", default=[], metavar="SIDE", help="leave a side-channel out")
    parser.add_argument("--max-new-tokens", type=int, default=128)


def _run_demo(arguments: argparse.Namespace) -> str:
    from pave.inference import demo
    from pave.inference.session import load_with_patches

    patches = [split_pair(text) for text in arguments.patch]
    model, config = load_with_patches(
        arguments.ckpt, arguments.base, arguments.overrides, arguments.device, patches, arguments.trust_plugins
    )
    return demo.answer_all(
        model,
        config,
        arguments.video,
        arguments.ask,
        split_files(arguments.features),
        frozenset(arguments.without),
        arguments.max_new_tokens,
        arguments.beside,
    )


def _add_serve(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser)
    add_patches(parser)
    parser.add_argument("--host", default="127.0.0.1", help="another lets other machines in, without a password")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--max-mb", type=int, default=100, metavar="N", help="of the files of one request")
    parser.add_argument("--max-seconds", type=float, default=600, metavar="S", help="of a video or sound track")
    parser.add_argument("--max-new-tokens", type=int, default=512, help="that a request may ask for")
    parser.add_argument("--waiting", type=int, default=8, metavar="N", help="requests that may wait; more are refused")
    text = "videos to offer; default: clips of the small world"
    parser.add_argument("--examples", type=Path, metavar="DIR", help=text)


def _run_serve(arguments: argparse.Namespace) -> None:
    from pave.inference.server import app

    options = app.Options(
        host=arguments.host,
        port=arguments.port,
        max_megabytes=arguments.max_mb,
        max_seconds=arguments.max_seconds,
        max_new_tokens=arguments.max_new_tokens,
        max_waiting=arguments.waiting,
        patches=[split_pair(text) for text in arguments.patch],
        examples=arguments.examples,
        trust_plugins=arguments.trust_plugins,
    )
    app.main(arguments.ckpt, arguments.base, arguments.overrides, arguments.device, options)


COMMANDS = (
    Command("train", "train patches and LoRA on a frozen base", _add_train, _run_train),
    Command("eval", "answer the questions of a split and score them", _add_eval, _run_eval),
    Command("score", "score answers again", _add_score, _run_score),
    Command("judge", "let a language model judge free answers, and score them", _add_judge, _run_judge),
    Command(
        "compare",
        "two runs on the same questions: intervals, a paired test, flipped answers",
        _add_compare,
        _run_compare,
    ),
    Command("side-report", "what a side-channel adds on the small world", _add_side_report, _run_side_report),
    Command("demo", "ask about one video", _add_demo, _run_demo),
    Command("serve", "a page in the browser, and endpoints, to ask about videos", _add_serve, _run_serve),
)
