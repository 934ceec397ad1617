"""Commands that show which plugins there are, what a model costs and what it did."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from pave.cli.arguments import (
    Command,
    CommandGroup,
    add_bench,
    add_checkpoint,
    add_config,
    add_extraction,
    add_features,
    split_files,
    split_pair,
)


def _add_list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", nargs="?", choices=["sides", "bases", "tasks", "checkpoints"])


def _run_list(arguments: argparse.Namespace) -> str:
    from pave.checkpoints import model_zoo
    from pave.models import base_catalog
    from pave.utils import registry

    if arguments.kind == "checkpoints":
        return model_zoo.table()
    if arguments.kind == "bases":
        return base_catalog.describe_bases()
    kinds = [arguments.kind] if arguments.kind else ["sides", "bases", "tasks"]
    return "\n".join(f"{kind}: {', '.join(registry.names(kind))}" for kind in kinds)


def _run_show(arguments: argparse.Namespace) -> str:
    from pave import config
    from pave.checkpoints import build
    from pave.models import trainable
    from pave.training import recipe

    resolved = config.load(arguments.config, arguments.overrides)
    recipe.check_arguments(resolved)
    return f"{config.dump(resolved)}\n{trainable.describe_parts(build.create(resolved, weights=False))}"


def _add_bench_patch(parser: argparse.ArgumentParser) -> None:
    text = "patterns such as 'audio-*' or '*-b4-train'; default: all"
    parser.add_argument("rows", nargs="*", metavar="ROW", help=text)
    add_bench(parser, 5, "timed runs of each row; the median counts")
    text = "a setting of a second patch, which runs in turn with the first, e.g. dtype=bfloat16, num_layers=3"
    parser.add_argument("--against", action="append", default=[], metavar="key=value", help=text)


def _run_bench_patch(arguments: argparse.Namespace) -> str:
    from pave.analysis import bench_patch
    from pave.utils import tables

    rows = bench_patch.measure_rows(
        arguments.rows,
        threads=arguments.threads,
        device=arguments.device,
        dtype=arguments.dtype,
        repetitions=arguments.reps,
        against=arguments.against,
    )
    if arguments.out:
        tables.save(arguments.out, [dataclasses.asdict(row) for row in rows])
    return bench_patch.table(rows)


def _run_bench_extract(arguments: argparse.Namespace) -> str:
    from pave.analysis import bench_extraction
    from pave.data import extraction

    settings = extraction.Settings(arguments.device, arguments.workers)
    rows = bench_extraction.measure_extraction(
        arguments.side, arguments.videos, arguments.weights, arguments.overrides, settings
    )
    return bench_extraction.table(rows)


def _add_bench_decode(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("video", type=Path)


def _run_bench_decode(arguments: argparse.Namespace) -> str:
    from pave.analysis import bench_extraction

    return bench_extraction.table(bench_extraction.measure_decoding(arguments.video))


def _add_bench_bases(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bases", nargs="*", metavar="BASE", help="the others are compared with the first")
    parser.add_argument("--frames", type=int, default=8, metavar="N")
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("ROWS", "COLUMNS"))
    add_bench(parser, 3, "turns of each base; the median counts")


def _run_bench_bases(arguments: argparse.Namespace) -> str:
    from pave.analysis import bench_bases
    from pave.utils import tables

    rows = bench_bases.measure_bases(
        arguments.bases or bench_bases.DEFAULT_BASES,
        arguments.frames,
        tuple(arguments.size),
        repetitions=arguments.reps,
        threads=arguments.threads,
        device=arguments.device,
        dtype=arguments.dtype,
    )
    if arguments.out:
        tables.save(arguments.out, [dataclasses.asdict(row) for row in rows])
    return bench_bases.table(rows, arguments.frames)


def _add_profile(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    text = "size of a side-channel; default: as published"
    parser.add_argument("--side-shape", action="append", default=[], metavar="NAME=STEPSxTOKENS", help=text)
    parser.add_argument("--text", type=int, metavar="N", help="text tokens of the prompt; default: 46")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write it as .json, or the table as .csv")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw it as .png, with curves; the extra plot")


def _run_profile(arguments: argparse.Namespace) -> str:
    from pave import config
    from pave.analysis import plots, profile
    from pave.utils import plotting

    shapes = {name: profile.parse_shape(text) for name, text in map(split_pair, arguments.side_shape)}
    if arguments.plot:
        plotting.require_matplotlib(arguments.plot)

    text_tokens = profile.TEXT_TOKENS if arguments.text is None else arguments.text
    resolved = config.load(arguments.config, arguments.overrides)
    result = profile.profile(resolved, shapes, text_tokens, curves=arguments.plot is not None)

    if arguments.out:
        profile.save(result, arguments.out)
    if arguments.plot:
        plots.plot_costs(result, arguments.plot)
    return profile.table(result)


def _add_explain(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser)
    parser.add_argument("--video", type=Path, required=True, metavar="FILE")
    parser.add_argument("--ask", required=True, metavar="QUESTION")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for index.html, PNGs and explain.json")
    add_features(parser)
    text = "features of another clip, to try instead"
    parser.add_argument("--other", action="append", default=[], metavar="SIDE=FILE", help=text)
    parser.add_argument("--answer", metavar="TEXT", help="explain this answer; default: what the model says")
    parser.add_argument("--token", type=int, metavar="N", help="of a frame, row by row; default: what changes most")


def _run_explain(arguments: argparse.Namespace) -> str:
    from pave.analysis import explain, plots
    from pave.checkpoints import load
    from pave.inference.session import Session
    from pave.utils import plotting

    plotting.require_matplotlib(arguments.out)
    features, other_features = split_files(arguments.features), split_files(arguments.other)

    model, config = load.load_model(
        arguments.ckpt, arguments.base, arguments.overrides, False, arguments.device, arguments.trust_plugins
    )
    explanation = explain.explain(
        Session(model, config),
        arguments.video,
        arguments.ask,
        features,
        other_features,
        arguments.answer,
        arguments.token,
    )
    return f"{explanation.answer}\n{plots.write_explanation(explanation, arguments.out)}"


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", type=Path, metavar="OUT", help="of `pave train`")


def _run_report(arguments: argparse.Namespace) -> str:
    from pave.training import report

    return report.render_report(arguments.run_folder)


_BENCH = (
    Command("patch", "time and memory of the patch at the published shapes", _add_bench_patch, _run_bench_patch),
    Command("extract", "items read, encoded and extracted a second", add_extraction, _run_bench_extract),
    Command("decode", "32 frames of a video against all of them", _add_bench_decode, _run_bench_decode),
    Command(
        "bases",
        "from frames to the tokens of several bases, in turns, at true sizes with random weights",
        _add_bench_bases,
        _run_bench_bases,
    ),
)
COMMANDS = (
    Command("list", "the plugins: sides, bases, tasks; the official checkpoints", _add_list, _run_list),
    Command("show", "a resolved config, what is frozen and what trains; needs no weights", add_config, _run_show),
    CommandGroup("bench", "time and memory: of the patch, of extraction, of decoding, of bases", _BENCH),
    Command(
        "profile",
        "what a model costs: parameters, files, work and memory of each part; needs no weights",
        _add_profile,
        _run_profile,
    ),
    Command("explain", "what the patches did for one answer, as pictures and numbers", _add_explain, _run_explain),
    Command(
        "report",
        "a training run as one page, report.html; `pave train` makes it at each save and at its end",
        _add_report,
        _run_report,
    ),
)
