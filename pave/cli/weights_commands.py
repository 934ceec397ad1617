"""Commands that download weights, convert them and make the folders where training starts."""

from __future__ import annotations

import argparse
from pathlib import Path

from pave.cli.arguments import Command, CommandGroup, add_overrides, add_trust


def _add_fetch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="see `pave list checkpoints`")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: checkpoints/NAME")


def _run_fetch(arguments: argparse.Namespace) -> str:
    from pave.checkpoints import download, model_zoo

    out = arguments.out or model_zoo.default_folder(arguments.name)
    download.main(arguments.name, out)
    return str(out)


def _add_convert(parser: argparse.ArgumentParser) -> None:
    _add_source_and_out(parser)
    text = "checkpoints: ours, official; bases: hf (transformers), lmms (lmms-lab)"
    parser.add_argument("--to", required=True, choices=["ours", "official", "hf", "lmms"], help=text)
    add_trust(parser)
    add_overrides(parser, "what SRC does not say, e.g. base.path=DIR sides.dense.rope=true")


def _run_convert(arguments: argparse.Namespace) -> None:
    from pave import config
    from pave.checkpoints import convert, convert_base

    if arguments.to == "official":
        convert.to_official(Path(arguments.source), arguments.out, arguments.overrides, arguments.trust_plugins)
        return

    settings = config.from_overrides(arguments.overrides)
    if arguments.to == "ours":
        convert.to_ours(Path(arguments.source), settings, arguments.out)
    else:
        convert_base.main(arguments.source, arguments.out, arguments.to, settings.base.vision_heads)


def _add_source_and_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="a folder; a base may be a hub name like org/name")
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder")


def _add_init_ppllava(parser: argparse.ArgumentParser) -> None:
    _add_source_and_out(parser)
    text = "openai/clip-vit-large-patch14-336"
    parser.add_argument("--clip", type=Path, required=True, metavar="DIR", help=text)


def _run_init_ppllava(arguments: argparse.Namespace) -> None:
    from pave.checkpoints import initial_weights

    initial_weights.start_ppllava(Path(arguments.source), arguments.clip, arguments.out)


def _run_init_video_panda(arguments: argparse.Namespace) -> None:
    from pave.checkpoints import initial_weights

    initial_weights.start_video_panda(Path(arguments.source), arguments.out)


_INIT = (
    Command("ppllava", "from LLaVA-NeXT and CLIP", _add_init_ppllava, _run_init_ppllava),
    Command("video_panda", "from EVE", _add_source_and_out, _run_init_video_panda),
)
COMMANDS = (
    Command("fetch", "get an official checkpoint from the hub", _add_fetch, _run_fetch),
    Command("convert", "a checkpoint or a base into another layout, and back", _add_convert, _run_convert),
    CommandGroup("init", "make the folder from which a whole base is trained", _INIT),
)
