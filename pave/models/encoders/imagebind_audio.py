"""The audio tower of ImageBind in plain torch. Attribute names make the state dict that of the published weights."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pave.media import feature_files
from pave.models.encoders import _state_dict
from pave.models.encoders._clip_layers import Mlp, multi_head_attention
from pave.types import UserError

PATCH, STRIDE = 16, 10
PATCHES = 12 * 19
"""Of a mel spectrogram of 128 x 204."""
HEADS = {768: 12}
"""By width, of published towers; theirs are not in the file."""
CLASS_TOKEN, OUTPUT_WEIGHT = "modality_preprocessors.audio.cls_token", "modality_heads.audio.2.weight"
"""Tensors that tell the sizes."""
LOGIT_SCALE, MAX_SCALE = 20.0, 100.0


class Stem(nn.Module):
    """Overlapping patches to tokens: float[K,1,128,204] -> float[K,228,W]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, width, PATCH, STRIDE, bias=False)
        self.norm_layer = nn.LayerNorm(width, eps=1e-5)

    def forward(self, mel: Tensor) -> Tensor:
        return self.norm_layer(self.proj(mel).flatten(2).transpose(1, 2))


class Positions(nn.Module):
    """Learned positions, float[1,229,W], the class token's included."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + PATCHES, width) * 0.02)


class Tokens(nn.Module):
    """Mel spectrogram to the trunk's input: float[K,1,128,204] -> float[K,229,W]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.rgbt_stem = Stem(width)  # called so in the published file for sound too
        self.pos_embedding_helper = Positions(width)

    def forward(self, mel: Tensor) -> Tensor:
        patches = self.rgbt_stem(mel)
        class_token = self.cls_token.expand(len(patches), -1, -1)
        return torch.cat([class_token, patches], dim=1) + self.pos_embedding_helper.pos_embed


class Attention(nn.Module):
    """Self-attention in which every query also sees one learned key and value."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(3 * width, width)))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.bias_k = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.bias_v = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        k = torch.cat([k, self.bias_k.expand(len(x), -1, -1)], dim=1)
        v = torch.cat([v, self.bias_v.expand(len(x), -1, -1)], dim=1)
        return self.out_proj(multi_head_attention(q, k, v, self.heads))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.norm_1 = nn.LayerNorm(width, eps=1e-6)
        self.norm_2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, 4 * width, "gelu")

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm_1(x))
        return x + self.mlp(self.norm_2(x))


class Trunk(nn.Module):
    """Blocks with no norm before or after them: float[K,229,W] -> the same."""

    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class ClassToken(nn.Module):
    """The class token of float[K,229,W]."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0]


class ScaledUnit(nn.Module):
    """Scale rows of float[K,C] to length exp(log_logit_scale), at most 100; the scale is stored, not learned."""

    log_logit_scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("log_logit_scale", torch.tensor(LOGIT_SCALE).log())

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) * self.log_logit_scale.exp().clamp(max=MAX_SCALE)


class Tower(nn.Module):
    """Mel windows float[K,1,128,204] (pave.media.audio) -> float[K,out_dim].

    The huge tower has width 768, depth 12 and out_dim 1024.
    """

    def __init__(self, width: int, depth: int, heads: int, out_dim: int) -> None:
        super().__init__()
        self.heads = heads
        head = nn.Sequential(nn.LayerNorm(width, eps=1e-6), ClassToken(), nn.Linear(width, out_dim, bias=False))
        self.modality_preprocessors = nn.ModuleDict({"audio": Tokens(width)})
        self.modality_trunks = nn.ModuleDict({"audio": Trunk(width, depth, heads)})
        self.modality_heads = nn.ModuleDict({"audio": head})
        self.modality_postprocessors = nn.ModuleDict({"audio": nn.Sequential(nn.Identity(), ScaledUnit())})

    def forward(self, mel: Tensor) -> Tensor:
        x = self.modality_preprocessors["audio"](mel)
        x = self.modality_trunks["audio"](x)
        x = self.modality_heads["audio"](x)
        return self.modality_postprocessors["audio"](x)


def load(path: Path) -> Tower:
    """Load a tower in eval mode and float32 from imagebind_huge.pth or a .safetensors; sizes come from the weights.

    Raises UserError: no such file, unreadable, number of heads unknown, tensors missing, unexpected or misshapen.
    """
    if path.suffix == ".safetensors":
        state, metadata = feature_files.read_safetensors(path)
    else:
        state, metadata = feature_files.read_torch(path), {}
    if not isinstance(state, dict):
        raise UserError(f"{path}: holds no named tensors; give imagebind_huge.pth or an audio tower as .safetensors")

    # The published file has six modalities; memory mapped, the five others are never read.
    state = {name: tensor for name, tensor in state.items() if name.split(".")[1:2] == ["audio"]}
    missing = [name for name in (CLASS_TOKEN, OUTPUT_WEIGHT) if name not in state]
    if missing:
        raise UserError(f"{path}: holds no ImageBind audio tower, {missing[0]} is missing; give imagebind_huge.pth")

    width, out_dim = state[CLASS_TOKEN].shape[-1], state[OUTPUT_WEIGHT].shape[0]
    depth = len({name.split(".")[3] for name in state if name.startswith("modality_trunks.audio.blocks.")})
    stated_heads = metadata.get("heads", str(HEADS.get(width, 0)))
    heads = int(stated_heads) if stated_heads.isdecimal() else 0
    if not heads or width % heads:
        raise UserError(
            f"{path}: width {width} and {stated_heads} heads; state the number of heads as metadata 'heads'"
        )

    with torch.device("meta"):
        tower = Tower(width, depth, heads, out_dim)
    state = {name: tensor.float() for name, tensor in state.items()}
    return _state_dict.fill(tower, path, "an ImageBind audio tower", state)


def save(tower: Tower, path: Path) -> None:
    """Write a tower as .safetensors that `load` reads; the huge one alone is 345 MB."""
    feature_files.write_safetensors(path, feature_files.TensorFile(tower.state_dict(), {"heads": str(tower.heads)}))
