"""Base for an experiment: PPLLaVA whose patch adds to the tokens before they are pooled (`base.name` is this module).

`pave/models/bases/ppllava.py` adds after it. Neither pooling nor its weights differ
(doc/results/bases_sideworld.md).
"""

from __future__ import annotations

from torch import Tensor

from pave.models.bases import ppllava
from pave.models.bases._loading import Settings
from pave.models.encoders import ppllava_projector as pooling
from pave.types import VideoTokens


class Before(ppllava.PPLLaVA):
    """`encode` gives every patch of both frames of a row, `layout` pools them with the weights of the last `encode`."""

    seen: Tensor
    """float[B,T,P], how much each patch matters."""

    def encode(self, pixels: Tensor, guides: Tensor) -> VideoTokens:
        """float[B,t,2*3,S,S] and questions int[B,L] -> query float[B,t,2*P,Q], embeds float[B,t,2*P,D]."""
        weight = self.multi_modal_projector.linear_1.weight
        tokens = self.vision_tower(pixels.to(weight.dtype).unflatten(2, (ppllava.TOGETHER, 3)).flatten(1, 2))
        projected, self.seen = self.multi_modal_projector(tokens, guides)
        query, embeds = (x.unflatten(1, (-1, ppllava.TOGETHER)).flatten(2, 3) for x in (tokens, projected))
        return VideoTokens(query, embeds)

    def layout(self, embeds: Tensor) -> Tensor:
        """float[B,t,2*P,D] -> float[B,t*S,D]"""
        tokens = embeds.unflatten(2, (ppllava.TOGETHER, -1)).flatten(1, 2)
        grids = self._grid(tokens), self._grid(self.seen)
        return pooling.pool(*grids, ppllava.WINDOW, temperature=self.temperature).flatten(1, 3)


def load(path: str, how: Settings = Settings(), weights: bool = True) -> Before:
    """As `pave.models.bases.ppllava.load`."""
    base = ppllava.load(path, how, weights)
    parts = base.vision_tower, base.multi_modal_projector, base.tokenizer, base.reader, base.temperature
    return Before(base.hf, *parts).eval()
