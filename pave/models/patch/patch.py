"""The patch: key-frame tokens attend, each within its own window of time, to the tokens of a side-channel.

Letters as in pave.types; H is `hidden_dim`. Computes what the official module computes, oddities included
(doc/reference/quirks.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pave.models.patch import rotary, windows
from pave.models.patch.attention import Kernel, QueryMap, attend, attend_folded, check_kernel, folding_pays
from pave.models.patch.conv import ConvMap
from pave.models.patch.windows import WindowGather, Windows

CPU_CHUNK_TOKENS = 2048
"""Query tokens that a CPU takes through the patch at a time; a GPU takes them all."""

Rotations = tuple[rotary.Rotation, rotary.Rotation]
"""Of the queries and of the keys."""
Neighborhood = Literal["chunks", "centered", "seconds", "global"]
ValueProjection = Literal["shared", "separate"]


@dataclass(frozen=True)
class ConvShape:
    """Geometry of a convolutional input map; entry 0 of each list belongs to the stem and is not used."""

    blocks: tuple[int, ...]
    strides: tuple[int, ...]
    scales: tuple[int, ...]


class CrossAttentionLayer(nn.Module):
    """Cross-attention with residual, then a feed-forward with residual."""

    def __init__(self, hidden_dim: int, side_hidden_dim: int, heads: int, separate_values: bool) -> None:
        super().__init__()
        self.heads = heads
        self.separate_values = separate_values
        self.q = QueryMap(hidden_dim, hidden_dim)
        self.k = nn.Linear(side_hidden_dim, hidden_dim)
        # Quirk: the official module projects values with k; v exists in every checkpoint and is never used.
        self.v = nn.Linear(side_hidden_dim, hidden_dim).requires_grad_(separate_values)
        self.norm = nn.LayerNorm(hidden_dim)
        self.up = nn.Linear(hidden_dim, 2 * hidden_dim, bias=False)
        self.down = nn.Linear(2 * hidden_dim, hidden_dim, bias=False)

    def forward(
        self, x: Tensor, memory: Tensor, gather: WindowGather, rotations: Rotations | None, kernel: Kernel
    ) -> Tensor:
        """Update queries x float[R,N,H] from mapped side steps float[m,P,*] -> float[R,N,H]."""
        key = gather(self.k(memory)).unflatten(-1, (self.heads, -1))
        value = gather(self.v(memory)).unflatten(-1, (self.heads, -1)) if self.separate_values else key

        if rotations is None and kernel == "sdpa" and folding_pays(x.shape[1], key):
            x = x + attend_folded(self.q, x, key, value, gather)
        else:
            query = self.q(x).unflatten(-1, (self.heads, -1))
            if rotations is not None:
                query_rotation, key_rotation = rotations
                query = rotary.apply_rotary(query, query_rotation)
                key = rotary.apply_rotary(key, key_rotation)
            x = x + attend(query, key, value, gather, kernel)

        return x + self.down(F.gelu(self.up(self.norm(x))))


class Patch(nn.Module):
    """g(query, side): the update of the projected visual tokens; exactly zero before training (paper section 3)."""

    def __init__(
        self,
        side_dim: int,
        query_dim: int,
        out_dim: int,
        *,
        hidden_dim: int = 512,
        side_hidden_dim: int = 512,
        heads: int = 4,
        num_layers: int = 2,
        rope: bool = False,
        conv: ConvShape | None = None,
        queries: tuple[int, int] | None = None,
        value_projection: ValueProjection = "shared",
        out_mlp: bool = True,
        out_norm: bool = True,
        dropout: float = 0.0,
        neighborhood: Neighborhood = "chunks",
        window_reach: float = 0,
        kernel: Kernel = "sdpa",
    ) -> None:
        """Build a patch at its start.

        `queries` = (frames, tokens) makes the queries learnable; `window_reach` counts steps (centered) or seconds.
        Raises ValueError for 3D rope with heads of other than 128 channels, UserError without the kernel's package.
        """
        super().__init__()
        if rope and hidden_dim != heads * rotary.HEAD_DIM:
            raise ValueError(f"3D rope needs heads of {rotary.HEAD_DIM} channels, got {hidden_dim} / {heads}")
        check_kernel(kernel)

        self.rope = rope
        self.neighborhood = neighborhood
        self.window_reach = window_reach
        self.kernel: Kernel = kernel

        if conv is None:
            self.side_in: nn.Linear | ConvMap = nn.Linear(side_dim, side_hidden_dim)
        else:
            self.side_in = ConvMap(side_dim, side_hidden_dim, conv.blocks, conv.strides, conv.scales)
            side_hidden_dim = self.side_in.out_dim
        self.queries = nn.Parameter(torch.randn(*queries, hidden_dim)) if queries else None
        self.query_in = None if queries else nn.Linear(query_dim, hidden_dim)
        self.layers = nn.ModuleList()
        for _ in range(num_layers):
            self.layers.append(CrossAttentionLayer(hidden_dim, side_hidden_dim, heads, value_projection == "separate"))

        self.out: nn.Sequential | None = None
        if out_mlp:
            self.out = nn.Sequential(
                nn.Linear(hidden_dim, 2 * hidden_dim), nn.GELU(), nn.Linear(2 * hidden_dim, out_dim)
            )
        self.dropout = nn.Dropout(dropout)
        self.out_norm = nn.LayerNorm(out_dim) if out_norm else None
        self.reset_biases()

    def reset_biases(self) -> None:
        """Set all linear biases and the output norm to zero, as official training starts: the patch adds nothing."""
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
        """Compute the update: query float[B,T,S,Q], x float[B,K,P,C] or float[B,K,H,W,C] -> float[B,T,S,D].

        `steps` counts the valid steps of each sample (None: all); `stretch_to` defaults to T.
        """
        steps = list(steps) if steps is not None else [x.shape[1]] * len(x)
        assert len(steps) == len(x), (steps, x.shape)
        assert 0 < min(steps) <= max(steps) <= x.shape[1], (steps, x.shape)
        like = next(self.parameters())

        # Plan on the host: which steps each window takes, and where queries and keys stand in time.
        if self.queries is not None:
            query = self.queries.expand(len(x), -1, -1, -1)
        frames, per_frame = query.shape[1:3]
        plan = self.plan_windows(steps, frames, stretch_to, seconds, frame_seconds)
        num_windows = plan.start.numel()
        times = rotary.frame_times(frames, plan.total).view(num_windows, -1) if self.rope else None

        # Run: a few windows at a time, each with the side steps it needs.
        x, valid = self._flat_steps(x, steps, like)
        tokens = query.reshape(num_windows, -1, query.shape[-1])
        updates = []
        for rows in self._row_slices(tokens, plan):
            gather = WindowGather(plan, rows, x.shape[1], like)
            memory = x[gather.span] if valid is None else x[valid[gather.span].to(x.device)]
            rotations = None
            if times is not None:
                rotations = _rotations(times[rows], gather.position, per_frame, x.shape[1], like)
            updates.append(self._run(tokens[rows].to(like.dtype), memory.to(like.dtype), gather, rotations))
        return torch.cat(updates).view(len(steps), frames, per_frame, -1)

    def _run(self, tokens: Tensor, memory: Tensor, gather: WindowGather, rotations: Rotations | None) -> Tensor:
        """Some windows from end to end: tokens float[R,N,Q], the side steps they need float[m,P,C] -> float[R,N,D]"""
        if isinstance(self.side_in, nn.Linear):
            memory = self.side_in(memory)
        if self.query_in is not None:
            tokens = self.query_in(tokens)
        for layer in self.layers:
            tokens = layer(tokens, memory, gather, rotations, self.kernel)
        tokens = self.dropout(tokens if self.out is None else self.out(tokens))
        return tokens if self.out_norm is None else self.out_norm(tokens)

    def _row_slices(self, tokens: Tensor, plan: Windows) -> list[slice]:
        """Rows that go through together: few on a CPU, whose caches are small."""
        if tokens.device.type != "cpu":
            return [slice(0, len(tokens))]
        # Windows of one sample overlap except in chunks: split between samples, so that no side step is mapped twice.
        unit = 1 if self.neighborhood == "chunks" else plan.start.shape[1]
        size = max(1, CPU_CHUNK_TOKENS // (unit * tokens.shape[1])) * unit
        return [slice(i, min(i + size, len(tokens))) for i in range(0, len(tokens), size)]

    def _flat_steps(self, x: Tensor, steps: list[int], like: Tensor) -> tuple[Tensor, Tensor | None]:
        """All steps float[B*K,P,C], and if ragged the valid ones int[M] (host); a conv map runs here, in order."""
        is_valid = torch.arange(x.shape[1]) < torch.tensor(steps)[:, None]
        if isinstance(self.side_in, ConvMap):
            if x.dim() == 4:
                x = x.unflatten(2, (rotary.square_side(x.shape[2]), -1))
            x = self.side_in(x.to(like.dtype), is_valid)
        x = x.flatten(2, -2).flatten(0, 1)
        return x, None if bool(is_valid.all()) else is_valid.flatten().nonzero()[:, 0]

    def plan_windows(
        self,
        steps: list[int],
        frames: int,
        stretch_to: int | None,
        seconds: Sequence[Tensor] | None,
        frame_seconds: Sequence[Tensor] | None,
    ) -> Windows:
        """Plan the neighbourhood N(k) of every frame. Raises ValueError for `seconds` without time stamps."""
        if self.neighborhood == "chunks":
            return windows.chunks(steps, frames, stretch_to)
        if self.neighborhood == "centered":
            return windows.centered(steps, frames, int(self.window_reach))
        if self.neighborhood == "global":
            return windows.one_window(steps)

        if seconds is None or frame_seconds is None:
            raise ValueError("the neighbourhood 'seconds' needs time stamps of the frames and of the side steps")
        assert [len(s) for s in seconds] == steps, "one time stamp for every valid step"
        return windows.within_seconds(seconds, frame_seconds, self.window_reach)


def _rotations(times: Tensor, positions: Tensor, per_frame: int, per_step: int, like: Tensor) -> Rotations:
    """Rotations float[R,N,64] of the queries at int[R,N/S] and float[R,J,64] of the gathered keys at int[R,W]."""
    grid = rotary.square_side(max(per_frame, per_step))
    return rotary.rotation_at(times, per_frame, grid, like), rotary.rotation_at(positions, per_step, grid, like)
