"""`pave extract`: from a folder of videos to one feature file each."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import torch
from tqdm import tqdm

from pave import config as configs
from pave import plug
from pave.io import store
from pave.types import UserError

log = logging.getLogger(__name__)
VIDEOS = {".mp4", ".avi", ".mkv", ".webm", ".mov", ".mpg", ".mpeg", ".gif"}


def main(side: str, videos: Path, out: Path, weights: str, device: str = "cpu") -> int:
    """Write out/NAME.safetensors for every video of a folder or list; files already there are kept.

    Returns how many were written. Raises UserError at the end if any video failed; failures.jsonl names each.
    """
    plugin = plug.load("sides", side)
    files = list_videos(videos)
    todo = [file for file in files if not target(out, file).exists()]
    log.info("%d videos, %d already extracted", len(files), len(files) - len(todo))
    encoder = plugin.build(Path(configs.resolve(weights)), torch.device(device)) if todo else None
    listing, failures = out / "failures.jsonl", []
    listing.unlink(missing_ok=True)
    for file in tqdm(todo, desc=f"extract {side}", unit="video"):
        try:
            tokens = plugin.encode(file, encoder)
            store.check(tokens, file, tokens.x.shape[-1])
            store.write(target(out, file), tokens, store.Meta(side, plugin.EXTRACTOR, file.name, str(plugin.STEP)))
        except UserError as error:
            failures.append({"file": str(file), "error": str(error)})
            log.warning("%s", error)
    if failures:
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text("".join(json.dumps(f) + "\n" for f in failures))
        raise UserError(f"{listing}: {len(failures)} of {len(todo)} videos failed, the first: {failures[0]['error']}")
    return len(todo)


def target(out: Path, video: Path) -> Path:
    """The feature file of a video."""
    return out / f"{video.stem}.safetensors"


def list_videos(source: Path) -> list[Path]:
    """Videos of a folder, or of a text file with one path a line (relative to the file). Raises UserError if none."""
    if source.is_dir():
        found = sorted(f for f in source.iterdir() if f.suffix.lower() in VIDEOS)
    elif source.is_file():
        found = [source.parent / line for line in source.read_text().splitlines() if line.strip()]
    else:
        raise UserError(f"{source}: no such folder or list of videos")
    if not found:
        raise UserError(f"{source}: no videos; expected files ending in {', '.join(sorted(VIDEOS))}")
    names = [f.stem for f in found]
    twice = sorted({n for n in names if names.count(n) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise UserError(f"{source}: two videos are called '{twice[0]}'; their feature files would be the same")
    return found
