"""Commands that bring weights here and into another layout."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pave.cli.arguments import add_trust, command


def add(commands: Any) -> None:
    """Their parsers."""
    for parser in (_fetch, _convert):
        parser(commands)


def _fetch(commands: Any) -> None:
    def run(a: argparse.Namespace) -> str:
        from pave.checkpoints import download, model_zoo

        out = a.out or model_zoo.default_folder(a.name)
        download.main(a.name, out)
        return str(out)

    parser = command(commands, "fetch", "get a released checkpoint from the hub", run)
    parser.add_argument("name", metavar="NAME", help="see `pave list zoo`")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: checkpoints/NAME")


def _convert(commands: Any) -> None:
    def run(a: argparse.Namespace) -> None:
        from pave import config
        from pave.checkpoints import convert, convert_base, initial_weights
        from pave.types import UserError

        if a.to == "ppllava" and a.clip is None:
            raise UserError("--to ppllava: needs --clip, a folder of openai/clip-vit-large-patch14-336")
        if a.to == "ppllava":
            initial_weights.ppllava(Path(a.source), a.clip, a.out)
            return
        if a.to == "video_panda":
            initial_weights.video_panda_start(Path(a.source), a.out)
            return
        if a.to == "official":
            convert.to_official(Path(a.source), a.out, a.overrides, a.trust_plugins)
            return
        given = config.from_overrides(a.overrides)
        if a.to == "ours":
            convert.to_ours(Path(a.source), given, a.out)
        else:
            convert_base.main(a.source, a.out, a.to, given.base.vision_heads)

    parser = command(commands, "convert", "a checkpoint or a base into another layout, and back", run)
    parser.add_argument("source", metavar="SRC", help="a folder; a base may be a hub name like org/name")
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    parser.add_argument(
        "--to",
        required=True,
        choices=["ours", "official", "hf", "lmms", "ppllava", "video_panda"],
        help="checkpoints: ours, official; bases: hf (transformers), lmms (lmms-lab); where training of a whole base "
        "starts: ppllava (from LLaVA-NeXT), video_panda (from EVE)",
    )
    add_trust(parser)
    parser.add_argument("--clip", type=Path, metavar="DIR", help="CLIP-L/14-336, for ppllava")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="what SRC does not say, e.g. base.path=DIR sides.dense.rope=true",
    )
