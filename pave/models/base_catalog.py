"""Catalogue of the bases for `pave list bases`: sizes, tokens a frame, licence and page of documentation."""

from __future__ import annotations

from typing import NamedTuple

from pave.utils import registry, tables


class CatalogEntry(NamedTuple):
    """A base as published."""

    sizes: str
    tokens: str
    """Visual tokens a frame, as the LLM reads them."""
    licence: str
    """Of the weights, by their model cards, which decide."""
    page: str


BASES = {
    "internvl": CatalogEntry("1B, 2B, 8B", "256, and a heading", "Qwen licence", "doc/models/bases.md"),
    "llava_onevision": CatalogEntry("0.5B, 7B", "196, and 14 newlines", "Apache-2.0", "doc/models/bases.md"),
    "ppllava": CatalogEntry("7B", "32", "Apache-2.0, Vicuna: Llama 2", "doc/models/ppllava.md"),
    "qwen2_5_vl": CatalogEntry("3B, 7B", "h x w / 1568", "3B Qwen research, 7B Apache-2.0", "doc/models/bases.md"),
    "qwen3_vl": CatalogEntry("2B, 4B, 8B", "h x w / 2048, and half a time stamp", "Apache-2.0", "doc/models/bases.md"),
    "video_llava": CatalogEntry("7B", "257", "Apache-2.0, Vicuna: Llama 2", "doc/models/bases.md"),
    "video_panda": CatalogEntry(
        "7B", "273 square, 154 at 16:9", "Apache-2.0, Vicuna: Llama 2", "doc/models/video_panda.md"
    ),
}


def describe_bases() -> str:
    """List all bases in a table, one a line; of those that are not in the catalogue the name alone."""
    lines = [("base", "sizes", "tokens a frame", "licence of the weights", "page")]
    for name in registry.names("bases"):
        lines.append((name, *BASES.get(name, CatalogEntry("", "", "", ""))))
    return tables.aligned(lines, text_columns=len(lines[0]))
