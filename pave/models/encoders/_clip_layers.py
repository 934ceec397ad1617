"""Layers of CLIP, which several encoders are made of. Attribute names are those of the published weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def quick_gelu(x: Tensor) -> Tensor:
    """OpenAI's approximation of GELU."""
    return x * (1.702 * x).sigmoid()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "quick_gelu": quick_gelu}
"""By their names in config.json."""


def multi_head_attention(
    q: Tensor, k: Tensor, v: Tensor, heads: int, is_causal: bool = False, scale: float | None = None
) -> Tensor:
    """Attention of queries float[N,L,W] to keys and values float[N,M,W] -> float[N,L,W]."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    x = F.scaled_dot_product_attention(q, k, v, is_causal=is_causal, scale=scale)
    return x.transpose(1, 2).flatten(2)


class Embeddings(nn.Module):
    """Images float[N,3,S,S] -> tokens float[N,1+P,W], a class token first; `edge` patches along a side."""

    def __init__(self, width: int, patch: int, edge: int) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(width) * 0.02)
        self.patch_embedding = nn.Conv2d(3, width, patch, patch, bias=False)
        self.position_embedding = nn.Embedding(1 + edge**2, width)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        class_token = self.class_embedding.expand(len(patches), 1, -1)
        return torch.cat([class_token, patches], dim=1) + self.position_embedding.weight


class Attention(nn.Module):
    """Self-attention over the second axis of float[N,L,W]; causal: no token sees a later one."""

    def __init__(self, width: int, heads: int, is_causal: bool = False) -> None:
        super().__init__()
        self.heads, self.is_causal = heads, is_causal
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        return self.out_proj(multi_head_attention(q, k, v, self.heads, self.is_causal))


class Mlp(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, width: int, inner: int, activation: str) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class Layer(nn.Module):
    """A transformer layer with its norms first: float[N,L,W] -> the same."""

    def __init__(self, width: int, inner: int, attention: Attention, activation: str, eps: float = 1e-5) -> None:
        super().__init__()
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.self_attn, self.mlp = attention, Mlp(width, inner, activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp_half(self.attention_half(x))

    def attention_half(self, x: Tensor) -> Tensor:
        """The first half, in which tokens see one another."""
        return x + self.self_attn(self.layer_norm1(x))

    def mlp_half(self, x: Tensor) -> Tensor:
        """The second half, each token by itself."""
        return x + self.mlp(self.layer_norm2(x))


class LayerStack(nn.Module):
    """Layers under the name `layers`, one after the other."""

    def __init__(self, layers: Iterable[Layer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x
