"""PPLLaVA's two CLIP towers in plain torch: pictures with the optional branch over time, and text of 248 positions.

Attribute names make the state dicts those of the published weights, without what no feature needs: the last layer of
the picture tower, the last step of its branch, and the norm after them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pave.models.encoders.languagebind_video import Attention, Embeddings, Mlp

EPS = 1e-5
ACTIVATION = "quick_gelu"
KEPT, STRETCH, POSITIONS = 20, 4, 248
"""The text positions that stay as they are, how far the others are stretched, and how many there are then."""


class Causal(Attention):
    """Self-attention in which no token sees a later one."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """A layer of CLIP: float[N,L,W] -> the same."""

    def __init__(self, width: int, inner: int, attention: Attention) -> None:
        super().__init__()
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width, EPS), nn.LayerNorm(width, EPS)
        self.self_attn, self.mlp = attention, Mlp(width, inner, ACTIVATION)

    def forward(self, x: Tensor) -> Tensor:
        return self.think(self.look(x))

    def look(self, x: Tensor) -> Tensor:
        """The first half, in which tokens see one another."""
        return x + self.self_attn(self.layer_norm1(x))

    def think(self, x: Tensor) -> Tensor:
        """The second half, each token alone."""
        return x + self.mlp(self.layer_norm2(x))


class Moments(nn.Module):
    """Each place over time: float[N,T,W] -> the same; changes nothing as training starts."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.layer_norm1, self.self_attn = nn.LayerNorm(width, EPS), Attention(width, heads)
        self.temporal_fc = nn.Linear(width, width)
        nn.init.zeros_(self.temporal_fc.weight)
        nn.init.zeros_(self.temporal_fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.temporal_fc(self.self_attn(self.layer_norm1(x)))


class Encoder(nn.Module):
    """Layers under the name that CLIP has for them."""

    def __init__(self, layers: list[Layer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


class Vision(nn.Module):
    """Frames float[B,T,3,S,S] -> patches float[B,T,P,W]: hidden_states[-2] of the published class, no class token.

    With a branch of `depth` steps beside the last layers the frames of a video see one another.
    """

    btadapter_S_layers: nn.ModuleList
    btadapter_T_layers: nn.ModuleList

    def __init__(
        self, width: int, inner: int, layers: int, heads: int, patch: int, edge: int, depth: int = 0, moments: int = 64
    ) -> None:
        super().__init__()
        self.image_size, self.depth, self.moments = edge * patch, depth, moments
        self.embeddings = Embeddings(width, patch, edge)
        self.pre_layrnorm = nn.LayerNorm(width, EPS)  # called so in the published file
        self.encoder = Encoder([Layer(width, inner, Attention(width, heads)) for _ in range(layers - 1)])
        if depth:
            self.btadapter_cls_token = nn.Parameter(torch.zeros(1, 1, width))
            self.btadapter_time_embed = nn.Embedding(moments, width)
            spaces = [Layer(width, inner, Attention(width, heads)) for _ in range(depth - 1)]
            self.btadapter_S_layers = nn.ModuleList(spaces)
            self.btadapter_T_layers = nn.ModuleList([Moments(width, heads) for _ in range(depth - 1)])

    def forward(self, pixels: Tensor) -> Tensor:
        batch = len(pixels)
        main = self.pre_layrnorm(self.embeddings(pixels.flatten(0, 1)))
        layers = self.encoder.layers
        alone = len(layers) - max(self.depth - 1, 0)
        for layer in layers[:alone]:
            main = layer(main)
        branch: Tensor | None = None
        for i, layer in enumerate(layers[alone:]):
            main = layer(main)
            branch = self._step(i, main.unflatten(0, (batch, -1)), branch)
        patches = main.unflatten(0, (batch, -1))[:, :, 1:]
        return patches if branch is None else (patches + branch[:, :, 1:]) / 2

    def _step(self, i: int, main: Tensor, branch: Tensor | None) -> Tensor:
        """One step of the branch, float[B,T,1+P,W]; its class token is the same in every frame of a video."""
        frames = main.shape[1]
        first, patches = main[:, :, :1].mean(1, keepdim=True), main[:, :, 1:]
        if branch is None:
            place, time = self.embeddings.position_embedding.weight, self.btadapter_time_embed.weight[:frames]
            first = (first + place[0] + self.btadapter_cls_token) / 2
            patches = patches + place[1:] + time[:, None]
        else:
            first, patches = first + branch[:, :1, :1], patches + branch[:, :, 1:]
        over_time = self.btadapter_T_layers[i](patches.transpose(1, 2).flatten(0, 1))
        patches = over_time.unflatten(0, (len(main), -1)).transpose(1, 2)
        space: Any = self.btadapter_S_layers[i]
        seen = space.look(torch.cat([first.expand(-1, frames, -1, -1), patches], 2).flatten(0, 1))
        seen = seen.unflatten(0, (len(main), frames))
        # What the class token saw in each frame is averaged between the halves of a layer, not after it.
        first = seen[:, :, :1].mean(1, keepdim=True).expand(-1, frames, -1, -1)
        return space.think(torch.cat([first, seen[:, :, 1:]], 2))


class Words(nn.Module):
    """Token ids int[N,L] -> float[N,L,W], positions from two tables: what CLIP had, and what training may change."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.position_embedding = nn.Parameter(torch.zeros(POSITIONS, width), requires_grad=False)
        self.position_embedding_res = nn.Parameter(torch.zeros(POSITIONS, width))

    def forward(self, ids: Tensor) -> Tensor:
        table = torch.cat([self.position_embedding[:KEPT], self.position_embedding_res[KEPT:]])
        return self.token_embedding(ids) + table[: ids.shape[1]]


class Text(nn.Module):
    """CLIP's text tower: token ids int[N,L], L <= 248 -> float[N,W], what it has read at the end of each text.

    The end is the first largest id, and no token sees what follows it, so nothing depends on how texts are padded.
    """

    def __init__(self, vocabulary: int, width: int, inner: int, layers: int, heads: int) -> None:
        super().__init__()
        self.embeddings = Words(vocabulary, width)
        self.encoder = Encoder([Layer(width, inner, Causal(width, heads)) for _ in range(layers)])
        self.final_layer_norm = nn.LayerNorm(width, EPS)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embeddings(ids)
        for layer in self.encoder.layers:
            x = layer(x)
        return self.final_layer_norm(x[torch.arange(len(ids)), ids.argmax(1)])


def stretched(table: Tensor) -> Tensor:
    """CLIP's position table float[77,W] -> float[248,W]: the first stay, the rest go four times as far."""
    steps = torch.arange(POSITIONS - KEPT, device=table.device) / STRETCH
    below = steps.long().clamp(max=len(table) - KEPT - 2)
    low, high = table[KEPT + below], table[KEPT + below + 1]
    return torch.cat([table[:KEPT], low + (steps - below)[:, None] * (high - low)])
