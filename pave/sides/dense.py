"""The dense side: more frames than the language model gets, two a second, as 2x2 LanguageBind video tokens each.

files:  <video>.safetensors of ours: float[K,P,C]; or <video>.pt as published: float[K,1+P,C] with a class token first,
        K a multiple of 8, P = 4, C = 1024
"""

from __future__ import annotations

import math
from pathlib import Path

from pave.io import store
from pave.sides import _published
from pave.types import SideTokens

DIM = 1024
"""Width of the published features."""
EXTRACTOR = "languagebind_video"


def load(path: Path) -> SideTokens:
    """float32[K,P,C] from our feature file, or from a published .pt one, which states no times. UserError: unusable.

    A class token is known by the count: without it the tokens of a frame are a square.
    """
    if path.suffix != ".pt":
        return store.read(path, EXTRACTOR)
    x = _published.read(
        path,
        lambda shape: len(shape) == 3 and (_is_square(shape[1]) or _is_square(shape[1] - 1)),
        "(steps, tokens, width) with a square number of tokens, or one more",
    )
    return SideTokens(x if _is_square(x.shape[1]) else x[:, 1:])


def _is_square(count: int) -> bool:
    return math.isqrt(count) ** 2 == count
