"""What tests of `recipes` and others share."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

from helpers.paths import ROOT


class Recipe(NamedTuple):
    """A row of the published table."""

    task: str
    split: str
    sides: tuple[str, ...]
    batch: int
    accumulation: int
    epochs: int
    patch: dict[str, int]
    """Parameters by size of the base."""
    published: tuple[str, ...]
    depth: int = 2
    rope: bool = False


PATCH = {"0.5b": 6_235_776, "7b": 8_996_352}
RECIPES = {
    "avsd": Recipe("avsd", "test", ("audio",), 4, 4, 1, PATCH, ("134.5", "152.9")),
    "avqa": Recipe("avqa", "val", ("audio",), 4, 4, 2, PATCH, ("90.4", "93.8")),
    "music_avqa": Recipe(
        *("music_avqa", "test", ("audio",), 4, 4, 2, {"0.5b": 8_073_344, "7b": 10_833_920}),
        published=("77.3", "89.8", "74.1", "78.8", "79.7", "93.0", "78.0", "82.3"),
        depth=3,
    ),
    "scanqa": Recipe("scanqa", "val", ("scene3d",), 4, 4, 1, PATCH, ("84.2", "40.0", "103.4", "48.5")),
    "sqa3d": Recipe("sqa3d", "test", ("scene3d",), 4, 8, 2, PATCH, ("51.1", "52.8", "59.0", "61.4")),
    "egoexo4d_dp_data": Recipe(
        *("egoexo", "val", ("exo",), 2, 16, 2, {"0.5b": 6_301_312, "7b": 9_061_888}), published=("32.4", "44.2")
    ),
    "enhanced_video": Recipe(
        *("llava_video", "test", ("dense",), 2, 8, 1, PATCH),
        published=("57.8", "42.7", "37.4", "46.0", "71.1", "59.4", "49.2", "59.9", "46.6", "58.0", "51.6", "67.0"),
        rope=True,
    ),
    "multiple_side_channels": Recipe(
        *("avsd", "test", ("dense", "audio"), 2, 8, 2, {"7b": 8_996_352}), published=("160.0",)
    ),
}
SINGLE = [name for name in RECIPES if name != "multiple_side_channels"]


def file_of(name: str) -> Path:
    return ROOT / f"configs/{name}.yaml"


def header(name: str) -> list[str]:
    """The comment above a config, line by line; a command that goes on in the next line is one."""
    text = re.sub(r"\\\n# +", "", file_of(name).read_text())
    return [line[1:].strip() for line in text.splitlines() if line.startswith("#")]


def commands(name: str, start: str) -> list[list[str]]:
    """The words of the header's lines that start so; columns of numbers are left out."""
    return [shlex.split(re.split("  +", line)[0]) for line in header(name) if line.startswith(start)]


def variants(name: str) -> list[list[str]]:
    """The overrides of the header: LoRA alone, learnable queries, 7B."""
    return [words[1:] for words in commands(name, "... ")]
