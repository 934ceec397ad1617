"""The command line: parses, imports a command only when it is chosen, and turns user errors into one line."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Handler = Callable[[argparse.Namespace], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; exit code 1 and one line for everything the user can mend."""
    arguments = _parse(argv)
    logging.basicConfig(level=logging.INFO if _is_first_rank() else logging.WARNING, format="%(message)s")
    from pave.types import UserError

    try:
        arguments.run(arguments)
    except UserError as error:
        # A data loader's worker wraps the message in its traceback; the message is its last line.
        print(f"pave: {str(error).splitlines()[-1].removeprefix('pave.types.UserError: ')}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"pave: {error}", file=sys.stderr)
        return 1
    return 0


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


def _is_first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pave", description=__doc__, formatter_class=_Help)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (_prepare, _extract, _train, _eval, _score, _compare, _demo, _list, _show, _bench, _pretrain):
        add(commands)
    return parser


class _Help(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=100)


def _command(commands: Any, name: str, text: str, run: Handler) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text, formatter_class=_Help)
    parser.set_defaults(run=run)
    return parser


def _prepare(commands: Any) -> None:
    def run(a: argparse.Namespace) -> None:
        from pave.io import sideworld_files

        sideworld_files.make(a.out, a.train, a.test, a.seed, a.workers)

    parser = _command(commands, "prepare", "make the clips of the small world (real mp4 files with sound)", run)
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

    parser = _command(commands, "extract", "make the feature files of one side-channel from videos", run)
    parser.add_argument("side", help="see `pave list sides`")
    parser.add_argument("--videos", type=Path, required=True, metavar="DIR|LIST")
    parser.add_argument("--out", type=Path, required=True, metavar="STORE")
    parser.add_argument("--weights", required=True, metavar="FILE", help="of the encoder; asset:NAME ships with pave")
    parser.add_argument("--device", default="cpu")


def _train(commands: Any) -> None:
    def run(a: argparse.Namespace) -> None:
        from pave import config, train

        train.main(config.load(a.config, a.overrides), a.out or Path("runs", a.config.stem), a.resume)

    parser = _command(commands, "train", "train patches and LoRA on a frozen base", run)
    _add_config(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: runs/ and the config's name")
    parser.add_argument("--resume", action="store_true", help="go on from the newest finished checkpoint in DIR")


def _eval(commands: Any) -> None:
    def run(a: argparse.Namespace) -> None:
        from pave import evaluate

        options = evaluate.Options(a.split, a.shuffle_sides, a.batch, a.workers, a.max_new_tokens, a.keep_going)
        model, config = evaluate.load_model(a.ckpt, a.base, a.overrides, a.base_only, a.device)
        print(evaluate.table(evaluate.main(model, config, a.out or a.ckpt / "eval", options)))

    parser = _command(commands, "eval", "answer the questions of a split and score them", run)
    _add_checkpoint(parser)
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
    def run(a: argparse.Namespace) -> None:
        from pave import evaluate

        print(evaluate.table(evaluate.score(a.predictions, a.task, a.split, a.data)))

    parser = _command(commands, "score", "score a predictions file again", run)
    parser.add_argument("predictions", type=Path)
    parser.add_argument("--task", required=True, help="see `pave list tasks`")
    parser.add_argument("--data", type=Path, required=True, metavar="ROOT")
    parser.add_argument("--split", default="test")


def _compare(commands: Any) -> None:
    def run(a: argparse.Namespace) -> None:
        from pave import compare

        print(compare.main(a.base, a.patched, a.shuffled, a.out))

    parser = _command(commands, "compare", "chance, base, patched, shuffled side-channels: a table and a plot", run)
    for name in ("base", "patched", "shuffled"):
        parser.add_argument(
            f"--{name}", type=Path, required=True, metavar="DIR", help="a folder that `pave eval` wrote"
        )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for report.md and report.png")


def _demo(commands: Any) -> None:
    def run(a: argparse.Namespace) -> None:
        from pave import demo, evaluate

        model, config = evaluate.load_model(a.ckpt, a.base, a.overrides, False, a.device)
        features = {name: Path(file) for name, file in (_pair(text) for text in a.features)}
        print(demo.answer(model, config, a.video, a.ask, features, frozenset(a.without), a.max_new_tokens))

    parser = _command(commands, "demo", "ask one question about one video", run)
    _add_checkpoint(parser)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. sides.audio.encoder=FILE")
    parser.add_argument("--video", type=Path, required=True, metavar="FILE")
    parser.add_argument("--ask", required=True, metavar="QUESTION")
    parser.add_argument("--features", action="append", default=[], metavar="SIDE=FILE", help="ready feature file")
    parser.add_argument("--without", action="append", default=[], metavar="SIDE", help="leave a side-channel out")
    parser.add_argument("--max-new-tokens", type=int, default=128)


def _list(commands: Any) -> None:
    def run(a: argparse.Namespace) -> None:
        from pave import plug

        for kind in [a.kind] if a.kind else ["sides", "bases", "tasks"]:
            print(f"{kind}: {', '.join(plug.names(kind))}")

    parser = _command(commands, "list", "what there is: sides, bases, tasks", run)
    parser.add_argument("kind", nargs="?", choices=["sides", "bases", "tasks"])


def _show(commands: Any) -> None:
    def run(a: argparse.Namespace) -> None:
        from pave import checkpoint, config, train

        resolved = config.load(a.config, a.overrides)
        train.check_arguments(resolved)
        print(config.dump(resolved))
        print(train.describe(checkpoint.create(resolved, weights=False)))

    parser = _command(commands, "show", "a resolved config, what is frozen and what trains; needs no weights", run)
    _add_config(parser)


def _bench(commands: Any) -> None:
    def run(a: argparse.Namespace) -> None:
        from pave import bench

        rows = bench.patch(a.threads, a.device, a.rows or None, dtype=a.dtype, reps=a.reps, against=a.against)
        if a.out:
            bench.save(rows, a.out)
        print(bench.table(rows))

    parser = _command(commands, "bench", "time and memory of the patch at the published shapes", run)
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


def _pretrain(commands: Any) -> None:
    def run(a: argparse.Namespace) -> None:
        from pave.pretrain import audio, base

        {"base": base, "audio": audio}[a.what].learn(a.out, seed=a.seed)

    parser = _command(commands, "pretrain", "make the small world's base or audio tower again", run)
    parser.add_argument("what", choices=["base", "audio"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a YAML file, see configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. train.learning_rate=1e-4")


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ckpt", type=Path, required=True, metavar="DIR", help="a folder that `pave train` wrote")
    parser.add_argument("--base", default=None, metavar="PATH", help="where the base is, if it moved")
    parser.add_argument("--device", default=None, help="default: cuda if there is one")


def _pair(text: str) -> tuple[str, str]:
    from pave.types import UserError

    name, found, file = text.partition("=")
    if not found:
        raise UserError(f"'{text}': expected SIDE=FILE, for example audio=clip.safetensors")
    return name, file


if __name__ == "__main__":
    sys.exit(main())
