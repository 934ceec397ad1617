"""Commands that show what there is and what it costs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pave.cli.arguments import Help, add_checkpoint, add_config, add_extraction, command, pair


def add(commands: Any) -> None:
    """Their parsers."""
    for parser in (_list, _show, _bench, _profile, _explain, _report):
        parser(commands)


def _list(commands: Any) -> None:
    def run(a: argparse.Namespace) -> str:
        from pave.checkpoints import model_zoo
        from pave.models import base_catalog
        from pave.utils import registry

        if a.kind in ("zoo", "bases"):
            return model_zoo.table() if a.kind == "zoo" else base_catalog.table()
        kinds = [a.kind] if a.kind else ["sides", "bases", "tasks"]
        return "\n".join(f"{kind}: {', '.join(registry.names(kind))}" for kind in kinds)

    parser = command(commands, "list", "what there is: sides, bases, tasks; zoo: the released checkpoints", run)
    parser.add_argument("kind", nargs="?", choices=["sides", "bases", "tasks", "zoo"])


def _show(commands: Any) -> None:
    def run(a: argparse.Namespace) -> str:
        from pave import config
        from pave.checkpoints import build
        from pave.training import train

        resolved = config.load(a.config, a.overrides)
        train.check_arguments(resolved)
        return f"{config.dump(resolved)}\n{train.describe(build.create(resolved, weights=False))}"

    parser = command(commands, "show", "a resolved config, what is frozen and what trains; needs no weights", run)
    add_config(parser)


def _bench(commands: Any) -> None:
    text = "time and memory: of the patch, of extraction, of decoding, of what bases see"
    kinds = commands.add_parser("bench", help=text, description=text, formatter_class=Help)
    benches = kinds.add_subparsers(required=True, metavar="WHAT")
    for parser in (_bench_patch, _bench_extract, _bench_decode, _bench_bases):
        parser(benches)


def _bench_patch(benches: Any) -> None:
    def run(a: argparse.Namespace) -> str:
        from pave.analysis import bench_patch

        rows = bench_patch.patch(a.threads, a.device, a.rows or None, dtype=a.dtype, reps=a.reps, against=a.against)
        if a.out:
            bench_patch.save(rows, a.out)
        return bench_patch.table(rows)

    parser = command(benches, "patch", "time and memory of the patch at the published shapes", run)
    parser.add_argument(
        "rows", nargs="*", metavar="ROW", help="patterns such as 'audio-*' or '*-b4-train'; default: all"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--reps", type=int, default=5, help="timed runs of each row; the median counts")
    parser.add_argument("--against", type=Path, metavar="FILE", help="figures to print beside ours")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the rows as .json or .csv")


def _bench_extract(benches: Any) -> None:
    def run(a: argparse.Namespace) -> str:
        from pave.analysis import bench_extraction
        from pave.data import extraction

        settings = extraction.Settings(a.device, a.workers)
        return bench_extraction.table(bench_extraction.side(a.side, a.videos, a.weights, a.overrides, settings))

    parser = command(benches, "extract", "items read, encoded and extracted a second", run)
    add_extraction(parser)


def _bench_decode(benches: Any) -> None:
    def run(a: argparse.Namespace) -> str:
        from pave.analysis import bench_extraction

        return bench_extraction.table(bench_extraction.decode(a.video))

    parser = command(benches, "decode", "32 frames of a video against all of them", run)
    parser.add_argument("video", type=Path)


def _bench_bases(benches: Any) -> None:
    def run(a: argparse.Namespace) -> str:
        from pave.analysis import bench_bases, bench_patch

        how = {"reps": a.reps, "threads": a.threads, "device": a.device, "dtype": a.dtype}
        rows = bench_bases.measure(a.bases or bench_bases.COMPARED, a.frames, tuple(a.size), **how)
        if a.out:
            bench_patch.save(rows, a.out)
        return bench_bases.table(rows, a.frames)

    text = "from frames to the tokens of several bases, in turns, at true sizes with random weights"
    parser = command(benches, "bases", text, run)
    parser.add_argument("bases", nargs="*", metavar="BASE", help="the first is what others are compared with")
    parser.add_argument("--frames", type=int, default=8, metavar="N")
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("ROWS", "COLUMNS"))
    parser.add_argument("--reps", type=int, default=3, help="turns of each base; the median counts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the rows as .json or .csv")


def _profile(commands: Any) -> None:
    def run(a: argparse.Namespace) -> str:
        from pave import config
        from pave.analysis import plots, profile

        shapes = {name: profile.parse_shape(text) for name, text in map(pair, a.side)}
        if a.plot:
            plots.check(a.plot)
        text = profile.TEXT if a.text is None else a.text
        found = profile.profile(config.load(a.config, a.overrides), shapes, text, curves=a.plot is not None)
        if a.out:
            profile.save(found, a.out)
        if a.plot:
            plots.costs(found, a.plot)
        return profile.table(found)

    text = "what a model costs: parameters, files, work and memory of each part; needs no weights"
    parser = command(commands, "profile", text, run)
    add_config(parser)
    parser.add_argument(
        "--side", action="append", default=[], metavar="SIDE=STEPSxTOKENS", help="its size; default: as published"
    )
    parser.add_argument("--text", type=int, metavar="N", help="text tokens of the prompt; default: 46")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write it as .json, or the table as .csv")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw it as .png, with curves; the extra plot")


def _explain(commands: Any) -> None:
    def run(a: argparse.Namespace) -> str:
        from pave.analysis import explain, plots
        from pave.checkpoints import load
        from pave.inference.session import Session

        plots.check(a.out)
        features, others = ({name: Path(file) for name, file in map(pair, texts)} for texts in (a.features, a.other))
        session = Session(*load.load_model(a.ckpt, a.base, a.overrides, False, a.device, a.trust_plugins))
        found = explain.explain(session, a.video, a.ask, features, others, a.answer, a.token)
        return f"{found.answer}\n{plots.explanation(found, a.out)}"

    parser = command(commands, "explain", "what the patches did for one answer, as pictures and numbers", run)
    add_checkpoint(parser)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. sides.audio.encoder=FILE")
    parser.add_argument("--video", type=Path, required=True, metavar="FILE")
    parser.add_argument("--ask", required=True, metavar="QUESTION")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for index.html, PNGs and explain.json")
    parser.add_argument(
        "--features", action="append", default=[], metavar="SIDE=FILE", help="features, or media to take it from"
    )
    parser.add_argument(
        "--other", action="append", default=[], metavar="SIDE=FILE", help="features of another clip, to try instead"
    )
    parser.add_argument("--answer", metavar="TEXT", help="explain this answer; default: what the model says")
    parser.add_argument("--token", type=int, metavar="N", help="of a frame, row by row; default: what changes most")


def _report(commands: Any) -> None:
    def run(a: argparse.Namespace) -> str:
        from pave.training import report

        return report.main(a.run_folder)

    text = "a training run as one page, report.html; `pave train` makes it at each save and at its end"
    parser = command(commands, "report", text, run)
    parser.add_argument("run_folder", type=Path, metavar="OUT", help="of `pave train`")
