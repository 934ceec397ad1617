"""The patch: key-frame tokens attend, inside their own stretch of time, to the tokens of a side-channel.

Letters as in pave.types; H is the patch's inner width. Behaves as the official module, oddities included
(doc/reference/quirks.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pave.models.patch import rotary
from pave.models.patch import windows as window
from pave.models.patch.attention import Kernel, QueryMap, attend, attend_folded, check_kernel, folding_pays
from pave.models.patch.conv import ConvMap

CPU_TOKENS = 2048
"""Query tokens that a CPU takes through the patch at a time; a GPU takes them all."""

Turns = tuple[rotary.Turn, rotary.Turn]
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
        self.q = QueryMap(width, width)
        self.k = nn.Linear(side_width, width)
        # Quirk: the released module projects values with k; v exists in every checkpoint and is never used.
        self.v = nn.Linear(side_width, width).requires_grad_(own_values)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width, bias=False)
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor, memory: Tensor, gather: window.Gather, turns: Turns | None, kernel: Kernel) -> Tensor:
        """x float[R,N,H], memory float[m,P,*], turns of queries and keys -> float[R,N,H]"""
        key = gather(self.k(memory)).unflatten(-1, (self.heads, -1))
        value = gather(self.v(memory)).unflatten(-1, (self.heads, -1)) if self.own_values else key
        if turns is None and kernel == "sdpa" and folding_pays(x.shape[1], key):
            x = x + attend_folded(self.q, x, key, value, gather)
        else:
            q = self.q(x).unflatten(-1, (self.heads, -1))
            if turns is not None:
                q, key = rotary.rotate(q, turns[0]), rotary.rotate(key, turns[1])
            x = x + attend(q, key, value, gather, kernel)
        return x + self.down(F.gelu(self.up(self.norm(x))))


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
        values: Literal["shared", "separate"] = "shared",
        out_mlp: bool = True,
        out_norm: bool = True,
        dropout: float = 0.0,
        neighborhood: Neighborhood = "chunks",
        reach: float = 0,
        kernel: Kernel = "sdpa",
    ) -> None:
        """`queries` = (frames, tokens) makes the queries learnable; `reach` counts steps (centered) or seconds."""
        super().__init__()
        if rope and width != heads * 128:
            raise ValueError(f"3D rope needs heads of 128 channels, got {width} / {heads}")
        check_kernel(kernel)
        self.rope, self.neighborhood, self.reach, self.kernel = rope, neighborhood, reach, kernel
        if conv is None:
            self.side_in: nn.Linear | ConvMap = nn.Linear(side_dim, side_width)
        else:
            self.side_in = ConvMap(side_dim, side_width, conv.blocks, conv.strides, conv.scales)
            side_width = self.side_in.width
        self.queries = nn.Parameter(torch.randn(*queries, width)) if queries else None
        self.query_in = None if queries else nn.Linear(query_dim, width)
        self.layers = nn.ModuleList([Layer(width, side_width, heads, values == "separate") for _ in range(depth)])
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
        steps = list(steps) if steps is not None else [x.shape[1]] * len(x)
        assert len(steps) == len(x), (steps, x.shape)
        assert 0 < min(steps) <= max(steps) <= x.shape[1], (steps, x.shape)
        like = next(self.parameters())
        if self.queries is not None:
            query = self.queries.expand(len(x), -1, -1, -1)
        frames, per_frame = query.shape[1:3]
        windows = self.windows(steps, frames, stretch_to, seconds, frame_seconds)
        x, valid = self._flat_steps(x, steps, like)
        times = rotary.frame_times(frames, windows.total).view(windows.start.numel(), -1) if self.rope else None
        tokens = query.reshape(windows.start.numel(), -1, query.shape[-1])
        out = []
        for rows in self._portions(tokens, windows):
            gather = window.Gather(windows, rows, x.shape[1], like)
            memory = x[gather.span] if valid is None else x[valid[gather.span].to(x.device)]
            turns = None if times is None else _turns(times[rows], gather.position, per_frame, x.shape[1], like)
            out.append(self._run(tokens[rows].to(like.dtype), memory.to(like.dtype), gather, turns))
        return torch.cat(out).view(len(steps), frames, per_frame, -1)

    def _run(self, tokens: Tensor, memory: Tensor, gather: window.Gather, turns: Turns | None) -> Tensor:
        """Some windows from end to end: tokens float[R,N,Q], the side steps they need float[m,P,C] -> float[R,N,D]"""
        if isinstance(self.side_in, nn.Linear):
            memory = self.side_in(memory)
        if self.query_in is not None:
            tokens = self.query_in(tokens)
        for layer in self.layers:
            tokens = layer(tokens, memory, gather, turns, self.kernel)
        tokens = self.dropout(tokens if self.out is None else self.out(tokens))
        return tokens if self.out_norm is None else self.out_norm(tokens)

    def _portions(self, tokens: Tensor, windows: window.Windows) -> list[slice]:
        """Rows that go through together: few on a CPU, whose caches are small; no side step is mapped twice."""
        count, groups = len(tokens), windows.start.shape[1]
        unit = 1 if self.neighborhood == "chunks" else groups
        size = max(1, CPU_TOKENS // (unit * tokens.shape[1])) * unit if tokens.device.type == "cpu" else count
        return [slice(i, min(i + size, count)) for i in range(0, count, size)]

    def _flat_steps(self, x: Tensor, steps: list[int], like: Tensor) -> tuple[Tensor, Tensor | None]:
        """All steps float[B*K,P,C], and if ragged the valid ones int[M] (host); a conv map sees them in order."""
        inside = torch.arange(x.shape[1]) < torch.tensor(steps)[:, None]
        if isinstance(self.side_in, ConvMap):
            if x.dim() == 4:
                x = x.unflatten(2, (rotary.square_side(x.shape[2]), -1))
            x = self.side_in(x.to(like.dtype), inside)
        x = x.flatten(2, -2).flatten(0, 1)
        return x, None if bool(inside.all()) else inside.flatten().nonzero()[:, 0]

    def windows(
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
        assert [len(s) for s in seconds] == steps, "one time stamp for every valid step"
        return window.near(seconds, frame_seconds, self.reach)


def _turns(times: Tensor, positions: Tensor, per_frame: int, per_step: int, like: Tensor) -> Turns:
    """Rotary turns float[R,N,64] of the queries at int[R,N/S] and float[R,J,64] of the gathered keys at int[R,W]."""
    grid = rotary.square_side(max(per_frame, per_step))
    return rotary.turn(times, per_frame, grid, like), rotary.turn(positions, per_step, grid, like)
