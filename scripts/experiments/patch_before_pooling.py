"""Base for an experiment: PPLLaVA whose patch adds to the tokens before they are pooled, not after.

Neither pooling nor its weights differ from pave/models/bases/ppllava.py (doc/results/bases_sideworld.md).
"""

from __future__ import annotations

from torch import Tensor

from pave.models.bases import ppllava
from pave.types import VideoTokens


class Base(ppllava.Base):
    """PPLLaVA whose `encode` gives every patch of both frames of a row; `arrange_tokens` pools them."""

    relevance: Tensor
    """float[B,T,P], how much each patch mattered in the last `encode`."""

    def encode(self, pixels: Tensor, prompt_ids: Tensor | None = None) -> VideoTokens:
        """Encode float[B,t,2*3,S,S] and questions int[B,L] into query float[B,t,2*P,Q], embeds float[B,t,2*P,D]."""
        weight = self.multi_modal_projector.linear_1.weight
        tokens = self.vision_tower(pixels.to(weight.dtype).unflatten(2, (ppllava.FRAMES_PER_WINDOW, 3)).flatten(1, 2))
        projected, self.relevance = self.multi_modal_projector(tokens, prompt_ids)
        rows = (-1, ppllava.FRAMES_PER_WINDOW)
        return VideoTokens(tokens.unflatten(1, rows).flatten(2, 3), projected.unflatten(1, rows).flatten(2, 3))

    def arrange_tokens(self, embeds: Tensor) -> Tensor:
        """Pool float[B,t,2*P,D] to float[B,t*S,D]."""
        tokens = embeds.unflatten(2, (ppllava.FRAMES_PER_WINDOW, -1)).flatten(1, 2)
        return self.pool(tokens, self.relevance, ppllava.VIDEO_WINDOW).flatten(1, 2)
