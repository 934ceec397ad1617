"""PPLLaVA's two CLIP towers in plain torch: images with the optional branch over time, and text of 248 positions.

Attribute names make the state dicts those of the published weights, without what no feature needs: the last layer of
the image tower, the last step of its branch, and the norm after them.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from pave.models.encoders._clip_layers import Attention, Embeddings, Layer, LayerStack

EPS = 1e-5
ACTIVATION = "quick_gelu"
KEPT_POSITIONS, POSITION_STRETCH, NUM_POSITIONS = 20, 4, 248
"""The text positions that stay as they are, how far the others are stretched, and how many there are then."""


class TemporalAttention(nn.Module):
    """Attention of each patch to itself over time: float[N,T,W] -> the same; changes nothing as training starts."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.layer_norm1, self.self_attn = nn.LayerNorm(width, EPS), Attention(width, heads)
        self.temporal_fc = nn.Linear(width, width)
        nn.init.zeros_(self.temporal_fc.weight)
        nn.init.zeros_(self.temporal_fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.temporal_fc(self.self_attn(self.layer_norm1(x)))


class VisionTower(nn.Module):
    """Frames float[B,T,3,S,S] -> patches float[B,T,P,W]: hidden_states[-2] of the published class, no class token.

    With a branch of `depth` steps beside the last layers the frames of a video see one another.
    """

    btadapter_S_layers: nn.ModuleList
    btadapter_T_layers: nn.ModuleList

    def __init__(
        self,
        width: int,
        inner: int,
        layers: int,
        heads: int,
        patch: int,
        edge: int,
        depth: int = 0,
        max_frames: int = 64,
    ) -> None:
        super().__init__()
        self.image_size, self.depth, self.max_frames = edge * patch, depth, max_frames
        self.embeddings = Embeddings(width, patch, edge)
        self.pre_layrnorm = nn.LayerNorm(width, EPS)  # called so in the published file
        self.encoder = LayerStack(_layer(width, inner, heads) for _ in range(layers - 1))
        if depth:
            self.btadapter_cls_token = nn.Parameter(torch.zeros(1, 1, width))
            self.btadapter_time_embed = nn.Embedding(max_frames, width)
            self.btadapter_S_layers = nn.ModuleList(_layer(width, inner, heads) for _ in range(depth - 1))
            self.btadapter_T_layers = nn.ModuleList(TemporalAttention(width, heads) for _ in range(depth - 1))

    def forward(self, pixels: Tensor) -> Tensor:
        batch = len(pixels)
        layers = self.encoder.layers
        num_single = len(layers) - max(self.depth - 1, 0)

        main = self.pre_layrnorm(self.embeddings(pixels.flatten(0, 1)))
        for layer in layers[:num_single]:
            main = layer(main)

        branch: Tensor | None = None
        for i, layer in enumerate(layers[num_single:]):
            main = layer(main)
            branch = self._branch_step(i, main.unflatten(0, (batch, -1)), branch)

        patches = main.unflatten(0, (batch, -1))[:, :, 1:]
        return patches if branch is None else (patches + branch[:, :, 1:]) / 2

    def _branch_step(self, i: int, main: Tensor, branch: Tensor | None) -> Tensor:
        """One step of the branch, float[B,T,1+P,W]; its class token is the same in every frame of a video."""
        batch, frames = main.shape[:2]
        class_token, patches = main[:, :, :1].mean(1, keepdim=True), main[:, :, 1:]
        if branch is None:
            position, time = self.embeddings.position_embedding.weight, self.btadapter_time_embed.weight[:frames]
            class_token = (class_token + position[0] + self.btadapter_cls_token) / 2
            patches = patches + position[1:] + time[:, None]
        else:
            class_token, patches = class_token + branch[:, :1, :1], patches + branch[:, :, 1:]

        by_time = self.btadapter_T_layers[i](patches.transpose(1, 2).flatten(0, 1))
        patches = by_time.unflatten(0, (batch, -1)).transpose(1, 2)

        spatial_layer = cast(Layer, self.btadapter_S_layers[i])
        tokens = torch.cat([class_token.expand(-1, frames, -1, -1), patches], 2)
        x = spatial_layer.attention_half(tokens.flatten(0, 1)).unflatten(0, (batch, frames))
        # The class token is averaged over the frames between the halves of a layer, not after it.
        class_token = x[:, :, :1].mean(1, keepdim=True).expand(-1, frames, -1, -1)
        return spatial_layer.mlp_half(torch.cat([class_token, x[:, :, 1:]], 2))


def _layer(width: int, inner: int, heads: int, is_causal: bool = False) -> Layer:
    return Layer(width, inner, Attention(width, heads, is_causal), ACTIVATION, EPS)


class TextEmbeddings(nn.Module):
    """Token ids int[N,L] -> float[N,L,W], positions from two tables: CLIP's, and one that training may change."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.position_embedding = nn.Parameter(torch.zeros(NUM_POSITIONS, width), requires_grad=False)
        self.position_embedding_res = nn.Parameter(torch.zeros(NUM_POSITIONS, width))

    def forward(self, ids: Tensor) -> Tensor:
        table = torch.cat([self.position_embedding[:KEPT_POSITIONS], self.position_embedding_res[KEPT_POSITIONS:]])
        return self.token_embedding(ids) + table[: ids.shape[1]]


class TextTower(nn.Module):
    """CLIP's text tower: token ids int[N,L], L <= 248 -> float[N,W], the hidden state at the end of each text.

    The end is the first largest id, and no token sees what follows it, so nothing depends on how texts are padded.
    """

    def __init__(self, vocabulary: int, width: int, inner: int, layers: int, heads: int) -> None:
        super().__init__()
        self.embeddings = TextEmbeddings(vocabulary, width)
        self.encoder = LayerStack(_layer(width, inner, heads, is_causal=True) for _ in range(layers))
        self.final_layer_norm = nn.LayerNorm(width, EPS)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.encoder(self.embeddings(ids))
        return self.final_layer_norm(x[torch.arange(len(ids)), ids.argmax(1)])


def stretch_positions(table: Tensor) -> Tensor:
    """CLIP's position table float[77,W] -> float[248,W]: the first stay, the others are interpolated four times."""
    steps = torch.arange(NUM_POSITIONS - KEPT_POSITIONS, device=table.device) / POSITION_STRETCH
    # The last positions lie beyond the table and continue its last interval.
    index = steps.long().clamp(max=len(table) - KEPT_POSITIONS - 2)
    low, high = table[KEPT_POSITIONS + index], table[KEPT_POSITIONS + index + 1]
    return torch.cat([table[:KEPT_POSITIONS], low + (steps - index)[:, None] * (high - low)])
