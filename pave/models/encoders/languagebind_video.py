"""LanguageBind's video tower in plain torch: CLIP ViT-L/14 whose layers also attend over time, 8 frames at once.

Attribute names make the state dict that of the published weights, without the last layer, which features never need.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pave.models.encoders import _clip_layers, _state_dict
from pave.models.encoders._clip_layers import ACTIVATIONS, CLIP_MEAN, CLIP_STD, Attention, Embeddings, LayerStack
from pave.types import UserError

PREFIXES = ("vision_model.", "model.video_tower.video_tower.")
"""Of the tower's names in LanguageBind_Video_merge and in Video-LLaVA-7B."""
HEADS = {1024: 16}
"""By width, of published towers; the weights do not tell."""
SHAPES = {
    "embeddings.patch_embedding.weight": 4,
    "embeddings.position_embedding.weight": 2,
    "encoder.layers.0.temporal_embedding": 3,
    "encoder.layers.0.mlp.fc1.weight": 2,
}
"""Tensors that tell the sizes, and their numbers of dimensions."""


class Layer(_clip_layers.Layer):
    """Attention of each token to itself over time, then a CLIP layer in each frame: float[N,F,1+P,W] -> the same."""

    def __init__(self, width: int, inner: int, heads: int, frames: int, activation: str, eps: float) -> None:
        super().__init__(width, inner, Attention(width, heads), activation, eps)
        self.temporal_embedding = nn.Parameter(torch.randn(1, frames, width) * 0.02)
        self.temporal_layer_norm1 = nn.LayerNorm(width, eps)
        self.temporal_attn = Attention(width, heads)

    def forward(self, x: Tensor) -> Tensor:
        chunks = len(x)
        # Every layer adds its embedding of time, and none takes it off.
        x = x + self.temporal_embedding[:, : x.shape[1], None]
        by_time = self.temporal_layer_norm1(x).transpose(1, 2).flatten(0, 1)
        x = x + self.temporal_attn(by_time).unflatten(0, (chunks, -1)).transpose(1, 2)

        return super().forward(x.flatten(0, 1)).unflatten(0, (chunks, -1))


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
        self.encoder = LayerStack(Layer(width, inner, heads, frames, activation, eps) for _ in range(depth - 1))

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.pre_layrnorm(self.embeddings(pixels.flatten(0, 1)))
        return self.encoder(x.unflatten(0, (len(pixels), -1)))

    def patches(self, frames: Tensor) -> Tensor:
        """Encode T frames from `prepare`, T a multiple of `frames`, into float[T,P,W] without class tokens."""
        weight = self.pre_layrnorm.weight
        chunks = frames.to(weight.device, weight.dtype).unflatten(0, (-1, self.frames))
        return self(chunks)[:, :, 1:].flatten(0, 1)


def prepare(image: np.ndarray, size: int) -> np.ndarray:
    """uint8[H,W,3] -> float16[3,size,size] as the official code feeds the tower."""
    return normalized_frame(image, size).half().numpy()


def normalized_frame(image: np.ndarray, size: int) -> Tensor:
    """Scale the short side of uint8[H,W,3], cut out the middle and normalise it: float[3,size,size]."""
    height, width = image.shape[:2]
    scaled = (size, math.floor(width / height * size))
    if width < height:
        scaled = (math.floor(height / width * size), size)

    x = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
    # The official code normalises first: four times the work for the same, up to rounding.
    x = F.interpolate(x, size=scaled, mode="bilinear")[0]
    row, column = round((scaled[0] - size) / 2), round((scaled[1] - size) / 2)
    x = x[:, row : row + size, column : column + size]
    return (x - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1)


def load(path: Path) -> Tower:
    """Load a tower in eval mode and float32 from LanguageBind_Video_merge or Video-LLaVA-7B, a folder or one file.

    Sizes come from the weights; heads and activation from config.json where it has them, else they are the published.
    Raises UserError: unreadable, another model, heads unknown, tensors missing, unexpected or misshapen.
    """
    state = _state_dict.select(path, _state_dict.after_prefix(PREFIXES, r"^embeddings\.position_ids$"))
    wrong = [name for name, dims in SHAPES.items() if name not in state or state[name].ndim != dims]
    if wrong:
        raise UserError(
            f"{path}: holds no LanguageBind video tower: {wrong[0]} is not in it as published; give "
            "LanguageBind_Video_merge or Video-LLaVA-7B (the -hf copy has lost the attention over time)"
        )

    (width, _, _, patch), (positions, _), (_, frames, _), (inner, _) = (state[name].shape for name in SHAPES)
    settings = _state_dict.config(path).get("vision_config", {})
    depth = settings.get("num_hidden_layers", _state_dict.count_layers(state))
    heads = settings.get("num_attention_heads", HEADS.get(width, 0))
    activation = settings.get("hidden_act", "gelu")
    if not heads or width % heads or activation not in ACTIVATIONS:
        raise UserError(
            f"{path}: width {width}, {heads} heads, activation '{activation}'; state num_attention_heads and "
            f"hidden_act ({' or '.join(ACTIVATIONS)}) under vision_config in a config.json beside it"
        )

    unused = ("post_layernorm.", f"encoder.layers.{depth - 1}.")
    state = {name: tensor for name, tensor in state.items() if not name.startswith(unused)}
    eps = settings.get("layer_norm_eps", 1e-5)
    with torch.device("meta"):
        tower = Tower(width, inner, depth, heads, patch, math.isqrt(positions - 1), frames, activation, eps)
    return _state_dict.fill(tower, path, "a LanguageBind video tower", state)
