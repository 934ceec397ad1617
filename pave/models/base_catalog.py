"""What `pave list bases` tells: of each base its sizes, tokens a frame, licence and page, a line each."""

from __future__ import annotations

from typing import NamedTuple

from pave.utils import registry, tables


class Facts(NamedTuple):
    """One base as published."""

    sizes: str
    tokens: str
    """A frame, as the LLM reads them."""
    licence: str
    """Of the weights, as their cards say; theirs counts."""
    page: str


BASES = {
    "internvl": Facts("1B, 2B, 8B", "256, and a heading", "Qwen licence", "doc/models/bases.md"),
    "llava_onevision": Facts("0.5B, 7B", "196, and 14 newlines", "Apache-2.0", "doc/models/bases.md"),
    "ppllava": Facts("7B", "32", "Apache-2.0, Vicuna: Llama 2", "doc/models/ppllava.md"),
    "qwen2_5_vl": Facts("3B, 7B", "h x w / 1568", "3B Qwen research, 7B Apache-2.0", "doc/models/bases.md"),
    "qwen3_vl": Facts("2B, 4B, 8B", "h x w / 2048, and half a time stamp", "Apache-2.0", "doc/models/bases.md"),
    "video_llava": Facts("7B", "257", "Apache-2.0, Vicuna: Llama 2", "doc/models/bases.md"),
    "video_panda": Facts("7B", "273 square, 154 at 16:9", "Apache-2.0, Vicuna: Llama 2", "doc/models/video_panda.md"),
}


def table() -> str:
    """Every base that there is, a line each; of those that others wrote the name alone."""
    lines = [("base", "sizes", "tokens a frame", "licence of the weights", "page")]
    lines += [(name, *BASES[name]) if name in BASES else (name, "", "", "", "") for name in registry.names("bases")]
    return tables.aligned(lines, text_columns=len(lines[0]))
