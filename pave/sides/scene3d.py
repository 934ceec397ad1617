"""The 3D side: tokens of 32 views of a scene, each knowing where in the room its patch lies (LLaVA-3D's features).

files:  <scene>.safetensors of ours: float[K,P,C]; or as published <scene>/video_features.pt: float[1,32*24*24,C],
        view by view, row by row, C = 1024
"""

from __future__ import annotations

from pathlib import Path

from pave.io import store
from pave.sides import _published
from pave.types import SideTokens

DIM = 1024
"""Width of the published features."""
EXTRACTOR = "llava3d"
FOLDER_FILE = "video_features.pt"
"""Published, in the folder of its scene."""
VIEWS, TOKENS = 32, 24 * 24
"""Of a published file, which does not state them."""


def load(path: Path) -> SideTokens:
    """float32[K,P,C], a step a view, from our feature file, a published .pt one or its folder. UserError: unusable."""
    if path.is_dir():
        path = path / FOLDER_FILE
    if path.suffix != ".pt":
        return store.read(path, EXTRACTOR)
    shape = (1, VIEWS * TOKENS)
    x = _published.read(path, lambda found: len(found) == 3 and found[:2] == shape, f"(1, {shape[1]}, width)")
    return SideTokens(x[0].unflatten(0, (VIEWS, TOKENS)))
