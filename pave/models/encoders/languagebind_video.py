"""LanguageBind's video tower in plain torch: CLIP ViT-L/14 whose layers also attend over time, 8 frames at once.

Attribute names make the state dict that of the published weights, without the last layer, which features never need.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pave.models.encoders import _state_dict
from pave.types import UserError

PREFIXES = ("vision_model.", "model.video_tower.video_tower.")
"""Of the tower's names in LanguageBind_Video_merge and in Video-LLaVA-7B."""
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
HEADS = {1024: 16}
"""By width, of published towers; the weights do not tell."""
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "quick_gelu": lambda x: x * (1.702 * x).sigmoid()}
SHAPES = {
    "embeddings.patch_embedding.weight": 4,
    "embeddings.position_embedding.weight": 2,
    "encoder.layers.0.temporal_embedding": 3,
    "encoder.layers.0.mlp.fc1.weight": 2,
}
"""Tensors that tell the sizes, and their dimensions."""


class Embeddings(nn.Module):
    """Pictures to tokens, a class token first: float[N,3,S,S] -> float[N,1+P,W]."""

    def __init__(self, width: int, patch: int, edge: int) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(width) * 0.02)
        self.patch_embedding = nn.Conv2d(3, width, patch, patch, bias=False)
        self.position_embedding = nn.Embedding(1 + edge**2, width)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(patches), 1, -1)
        return torch.cat([first, patches], dim=1) + self.position_embedding.weight


class Attention(nn.Module):
    """Self-attention over the second axis of float[N,L,W]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two layers with the tower's activation between."""

    def __init__(self, width: int, inner: int, activation: str) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class Layer(nn.Module):
    """Attention of each token to itself over time, then a CLIP layer in each frame: float[N,F,1+P,W] -> the same."""

    def __init__(self, width: int, inner: int, heads: int, frames: int, activation: str, eps: float) -> None:
        super().__init__()
        self.temporal_embedding = nn.Parameter(torch.randn(1, frames, width) * 0.02)
        self.temporal_layer_norm1 = nn.LayerNorm(width, eps)
        self.temporal_attn = Attention(width, heads)
        self.layer_norm1 = nn.LayerNorm(width, eps)
        self.self_attn = Attention(width, heads)
        self.layer_norm2 = nn.LayerNorm(width, eps)
        self.mlp = Mlp(width, inner, activation)

    def forward(self, x: Tensor) -> Tensor:
        units = len(x)
        x = x + self.temporal_embedding[:, : x.shape[1], None]  # added in every layer and never taken off
        moments = self.temporal_layer_norm1(x).transpose(1, 2).flatten(0, 1)
        x = x + self.temporal_attn(moments).unflatten(0, (units, -1)).transpose(1, 2)
        x = x.flatten(0, 1)
        x = x + self.self_attn(self.layer_norm1(x))
        x = x + self.mlp(self.layer_norm2(x))
        return x.unflatten(0, (units, -1))


class Encoder(nn.Module):
    """All layers but the published tower's last."""

    def __init__(self, layers: list[Layer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


class Tower(nn.Module):
    """float[N,F,3,S,S] -> float[N,F,1+P,W], a class token first: hidden_states[-2] of the published class.

    F is `frames`, or fewer where the tower teaches.
    """

    def __init__(
        self,
        width: int,
        inner: int,
        depth: int,
        heads: int,
        patch: int,
        edge: int,
        frames: int = 8,
        activation: str = "gelu",
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.image_size, self.frames = edge * patch, frames
        self.embeddings = Embeddings(width, patch, edge)
        self.pre_layrnorm = nn.LayerNorm(width, eps)  # called so in the published file
        self.encoder = Encoder([Layer(width, inner, heads, frames, activation, eps) for _ in range(depth - 1)])

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.pre_layrnorm(self.embeddings(pixels.flatten(0, 1))).unflatten(0, (len(pixels), -1))
        for layer in self.encoder.layers:
            x = layer(x)
        return x

    def patches(self, frames: Tensor) -> Tensor:
        """What `prepare` made of T frames, T a multiple of `frames` -> float[T,P,W] without class tokens."""
        weight = self.pre_layrnorm.weight
        units = frames.to(weight.device, weight.dtype).unflatten(0, (-1, self.frames))
        return self(units)[:, :, 1:].flatten(0, 1)


def prepare(picture: np.ndarray, size: int) -> np.ndarray:
    """uint8[H,W,3] -> float16[3,size,size] as the release fed the tower: short side scaled, the middle, normalised."""
    return pixels(picture, size).half().numpy()


def pixels(picture: np.ndarray, size: int) -> Tensor:
    """uint8[H,W,3] -> float[3,size,size], before it is halved."""
    height, width = picture.shape[:2]
    scaled = (math.floor(height / width * size), size) if width < height else (size, math.floor(width / height * size))
    x = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 255
    # The release normalised first: four times the work for the same, up to rounding.
    x = F.interpolate(x, size=scaled, mode="bilinear")[0]
    top, left = (round((long - size) / 2) for long in scaled)
    x = x[:, top : top + size, left : left + size]
    return (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def load(path: Path) -> Tower:
    """A tower in eval mode and float32 from LanguageBind_Video_merge or Video-LLaVA-7B, a folder or one of its files.

    Sizes come from the weights; heads and activation from config.json where it has them, else they are the published.
    UserError: unreadable, another model, heads unknown, tensors missing, left over or of the wrong shape.
    """
    state = _state_dict.select(path, _own_name)
    wrong = [name for name, dims in SHAPES.items() if name not in state or state[name].ndim != dims]
    if wrong:
        raise UserError(
            f"{path}: holds no LanguageBind video tower: {wrong[0]} is not in it as published; give "
            "LanguageBind_Video_merge or Video-LLaVA-7B (the -hf copy has lost the attention over time)"
        )
    told = _state_dict.config(path).get("vision_config", {})
    (width, _, _, patch), (places, _), (_, frames, _), (inner, _) = (state[name].shape for name in SHAPES)
    depth = told.get("num_hidden_layers", _state_dict.layers(state))
    heads, activation = told.get("num_attention_heads", HEADS.get(width, 0)), told.get("hidden_act", "gelu")
    if not heads or width % heads or activation not in ACTIVATIONS:
        raise UserError(
            f"{path}: width {width}, {heads} heads, activation '{activation}'; state num_attention_heads and "
            f"hidden_act ({' or '.join(ACTIVATIONS)}) under vision_config in a config.json beside it"
        )
    unused = ("post_layernorm.", f"encoder.layers.{depth - 1}.")
    state = {name: tensor for name, tensor in state.items() if not name.startswith(unused)}
    with torch.device("meta"):
        eps = told.get("layer_norm_eps", 1e-5)
        tower = Tower(width, inner, depth, heads, patch, math.isqrt(places - 1), frames, activation, eps)
    _state_dict.check(path, "a LanguageBind video tower", state, tower.state_dict())
    tower.load_state_dict(state, assign=True)
    return tower.eval()


def _own_name(name: str) -> str | None:
    own = next((name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)), None)
    return None if own == "embeddings.position_ids" else own
