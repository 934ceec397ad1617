"""The patch: key-frame tokens attend, inside their own stretch of time, to the tokens of a side-channel.

Letters as in pave.types; H is the patch's inner width. Behaviour as released, down to its oddities (doc/quirks.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pave.nn import rope as rotary
from pave.nn import window
from pave.nn.attention import attend
from pave.nn.conv import ConvMap

Neighborhood = Literal["chunks", "centered", "seconds", "global"]


@dataclass(frozen=True)
class ConvShape:
    """Geometry of a convolutional input map; entry 0 of each list belongs to the stem and is not used."""

    blocks: tuple[int, ...]
    strides: tuple[int, ...]
    scales: tuple[int, ...]


class Layer(nn.Module):
    """Cross-attention with residual, then a feed-forward with residual."""

    def __init__(self, width: int, side_width: int, heads: int, own_values: bool) -> None:
        super().__init__()
        self.heads = heads
        self.own_values = own_values
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(side_width, width)
        # Quirk: the released module projects values with k; v exists in every checkpoint and is never used.
        self.v = nn.Linear(side_width, width).requires_grad_(own_values)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width, bias=False)
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(
        self, query: Tensor, memory: Tensor, gather: window.Gather, turn: tuple[Tensor, Tensor] | None, kernel: str
    ) -> Tensor:
        """query float[B,G,N,H], memory float[B,K,P,*] -> float[B,G,N,H]"""
        q = self.q(query).unflatten(-1, (self.heads, -1))
        projected = self.k(memory)
        key = gather(projected).unflatten(-1, (self.heads, -1))
        value = gather(self.v(memory)).unflatten(-1, (self.heads, -1)) if self.own_values else key
        if turn is not None:
            q, key = rotary.rotate(q, turn[0]), rotary.rotate(key, turn[1])
        query = query + attend(q, key, value, gather, kernel)
        return query + self.down(F.gelu(self.up(self.norm(query))))


class Patch(nn.Module):
    """g(query, side): what is added to the projected visual tokens; exactly zero before training (paper section 3)."""

    def __init__(
        self,
        side_dim: int,
        query_dim: int,
        out_dim: int,
        *,
        width: int = 512,
        side_width: int = 512,
        heads: int = 4,
        depth: int = 2,
        rope: bool = False,
        conv: ConvShape | None = None,
        queries: tuple[int, int] | None = None,
        values: Literal["key", "own"] = "key",
        out_mlp: bool = True,
        out_norm: bool = True,
        dropout: float = 0.0,
        neighborhood: Neighborhood = "chunks",
        reach: float = 0,
        kernel: Literal["sdpa", "flash"] = "sdpa",
    ) -> None:
        """`queries` = (frames, tokens) makes the queries learnable; `reach` counts steps (centered) or seconds."""
        super().__init__()
        if rope and width != heads * 128:
            raise ValueError(f"3D rope needs heads of 128 channels, got {width} / {heads}")
        self.rope, self.neighborhood, self.reach, self.kernel = rope, neighborhood, reach, kernel
        if conv is None:
            self.side_in: nn.Linear | ConvMap = nn.Linear(side_dim, side_width)
        else:
            self.side_in = ConvMap(side_dim, side_width, conv.blocks, conv.strides, conv.scales)
            side_width = self.side_in.width
        self.queries = nn.Parameter(torch.randn(*queries, width)) if queries else None
        self.query_in = None if queries else nn.Linear(query_dim, width)
        self.layers = nn.ModuleList([Layer(width, side_width, heads, values == "own") for _ in range(depth)])
        self.out = (
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, out_dim)) if out_mlp else None
        )
        self.dropout = nn.Dropout(dropout)
        self.out_norm = nn.LayerNorm(out_dim) if out_norm else None
        self.reset_biases()

    def reset_biases(self) -> None:
        """The released start: all linear biases zero and the output norm all zero, so the patch adds nothing."""
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        if self.out_norm is not None:
            nn.init.zeros_(self.out_norm.weight)
            nn.init.zeros_(self.out_norm.bias)

    def forward(
        self,
        query: Tensor,
        x: Tensor,
        steps: Sequence[int] | None = None,
        *,
        stretch_to: int | None = None,
        seconds: Sequence[Tensor] | None = None,
        frame_seconds: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """query float[B,T,S,Q], x float[B,K,P,C] or float[B,K,H,W,C] -> float[B,T,S,D].

        `steps` counts the valid steps of each sample (None: all); `stretch_to` defaults to T.
        """
        weight = self.layers[0].q.weight
        steps = list(steps) if steps is not None else [x.shape[1]] * len(x)
        assert len(steps) == len(x) and 0 < min(steps) <= max(steps) <= x.shape[1], (steps, x.shape)
        memory = self._memory(x.to(weight.dtype), steps)
        tokens = self._tokens(query.to(weight.dtype), len(x))
        frames, per_frame = tokens.shape[1:3]
        windows = self._windows(steps, frames, stretch_to, seconds, frame_seconds)
        gather = window.Gather(windows, memory.shape[1], weight.device, weight.dtype)
        turn = self._turns(windows, gather, frames, per_frame, memory.shape[2]) if self.rope else None
        tokens = tokens.reshape(len(x), windows.start.shape[1], -1, tokens.shape[-1])
        for layer in self.layers:
            tokens = layer(tokens, memory, gather, turn, self.kernel)
        tokens = tokens.view(len(x), frames, per_frame, -1)
        tokens = self.dropout(tokens if self.out is None else self.out(tokens))
        return tokens if self.out_norm is None else self.out_norm(tokens)

    def _memory(self, x: Tensor, steps: list[int]) -> Tensor:
        """float[B,K,P,C] or float[B,K,H,W,C] -> float[B,K,P,side_width]"""
        if not isinstance(self.side_in, ConvMap):
            return self.side_in(x.flatten(2, -2))
        if x.dim() == 4:
            x = x.unflatten(2, (rotary.square_side(x.shape[2]), -1))
        return self.side_in(x, steps).flatten(2, 3)

    def _tokens(self, query: Tensor, samples: int) -> Tensor:
        """float[B,T,S,Q] -> float[B,T,S,H]"""
        if self.queries is not None:
            return self.queries.expand(samples, -1, -1, -1)
        assert self.query_in is not None
        return self.query_in(query)

    def _windows(
        self,
        steps: list[int],
        frames: int,
        stretch_to: int | None,
        seconds: Sequence[Tensor] | None,
        frame_seconds: Sequence[Tensor] | None,
    ) -> window.Windows:
        """The neighbourhood N(k) of every frame."""
        if self.neighborhood == "chunks":
            return window.chunks(steps, frames, stretch_to)
        if self.neighborhood == "centered":
            return window.centered(steps, frames, int(self.reach))
        if self.neighborhood == "global":
            return window.everything(steps)
        if seconds is None or frame_seconds is None:
            raise ValueError("the neighbourhood 'seconds' needs time stamps of the frames and of the side steps")
        return window.near(seconds, frame_seconds, self.reach)

    def _turns(
        self, windows: window.Windows, gather: window.Gather, frames: int, per_frame: int, per_step: int
    ) -> tuple[Tensor, Tensor]:
        """Rotary angles of the queries float[B,G,N,64] and of the gathered keys float[B,G,W,P,64]."""
        grid = rotary.square_side(max(per_frame, per_step))
        times = torch.stack([rotary.frame_times(frames, int(total)) for total in windows.total])
        query = rotary.angles(times, per_frame, grid).reshape(*windows.start.shape, -1, 64)
        key = rotary.angles(gather.position, per_step, grid)
        device = self.layers[0].q.weight.device
        return query.to(device), key.to(device)
