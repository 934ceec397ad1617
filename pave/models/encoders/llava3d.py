"""LLaVA-3D's features: what CLIP sees in each patch of a view, plus where in the room that patch lies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from pave.models.encoders import _state_dict, siglip
from pave.types import UserError

M = TypeVar("M", bound=nn.Module)

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
PREFIX = "model.video_tower.video_tower.positional_embedding."
"""Of the position embedding in LLaVA-3D's checkpoint."""
WIDTH = "position_embedding_head.3.bias"
"""The tensor that tells its width."""
LONGEST, SHORTEST = 32.0, 0.125
"""Metres: wavelengths of the fixed position embedding."""


def crop(image: Image.Image, size: int, resample: Image.Resampling) -> np.ndarray:
    """The middle square of a picture, its short side scaled to `size`: [size,size] or [size,size,3]."""
    width, height = _scaled(image.size, size)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(image.resize((width, height), resample).crop((left, top, left + size, top + size)))


def crop_intrinsic(matrix: np.ndarray, picture: tuple[int, int], size: int) -> np.ndarray:
    """float64[4,4], intrinsics of a picture (width, height) after `crop`."""
    width, height = _scaled(picture, size)
    matrix = matrix.copy()
    matrix[0] *= width / picture[0]
    matrix[1] *= height / picture[1]
    # Quirk: half a pixel is counted where the picture is cut by an odd number, and the cut falls on a whole one.
    matrix[0, 2] -= (width - size) / 2
    matrix[1, 2] -= (height - size) / 2
    return matrix


def _scaled(picture: tuple[int, int], size: int) -> tuple[int, int]:
    """Width and height with the short one made `size`, the other cut to a whole number."""
    short = min(picture)
    return size * picture[0] // short, size * picture[1] // short


def unproject(depth: Tensor, intrinsic: Tensor, pose: Tensor, pixels: Tensor) -> Tensor:
    """World points float[V,R,R,3] of the rows and columns `pixels` int64[R] of metres float[V,S,S].

    intrinsic, pose: float[V,4,4], the pose from camera to world.
    """
    z = depth[:, pixels][:, :, pixels]
    row, column = pixels[:, None], pixels[None, :]
    fx, fy, cx, cy = (intrinsic[:, i, j, None, None] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    # Quirk: no depth is 0, so a hole lies where the camera stands.
    points = torch.stack([(column - cx) * z / fx, (row - cy) * z / fy, z], dim=-1)
    return torch.einsum("vij,vrcj->vrci", pose[:, :3, :3], points) + pose[:, None, None, :3, 3]


class PositionMlp(nn.Module):
    """Metres to token width, learned by LLaVA-3D: float[...,3] -> float[...,C]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.position_embedding_head = nn.Sequential(
            nn.Linear(3, width), nn.LayerNorm(width, eps=1e-5), nn.ReLU(), nn.Linear(width, width)
        )

    def forward(self, xyz: Tensor) -> Tensor:
        return self.position_embedding_head(xyz)


class PositionWaves(nn.Module):
    """Metres to token width without weights: float[...,3] -> float[...,C], C >= 6.

    Sines, then cosines of x, of y and of z at C // 6 wavelengths from 32 m down to 12.5 cm, evenly spaced in their
    logarithm; up to five last channels stay 0.
    """

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        lengths = torch.logspace(math.log10(LONGEST), math.log10(SHORTEST), width // 6)
        self.register_buffer("frequencies", 2 * math.pi / lengths)

    def forward(self, xyz: Tensor) -> Tensor:
        angles = xyz[..., None] * self.frequencies
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)
        return nn.functional.pad(waves, (0, self.width - waves.shape[-1]))


class ClipTower(nn.Module):
    """CLIP's picture tower: float[N,3,S,S] -> float[N,P,C], the layer before the last, without the class token."""

    mean: Tensor
    std: Tensor

    def __init__(self, hf: Any) -> None:
        super().__init__()
        self.hf = hf
        self.image_size: int = hf.config.image_size
        self.register_buffer("mean", torch.tensor(CLIP_MEAN), persistent=False)
        self.register_buffer("std", torch.tensor(CLIP_STD), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.hf(pixel_values=pixels, output_hidden_states=True).hidden_states[-2][:, 1:]

    def patches(self, pictures: Tensor) -> Tensor:
        """uint8[N,S,S,3] -> float[N,P,C]"""
        return self(self.normalise(pictures.to(self.mean.device)))

    def normalise(self, pictures: Tensor) -> Tensor:
        """uint8[N,S,S,3] -> float[N,3,S,S]"""
        return ((pictures / 255 - self.mean) / self.std).movedim(-1, 1)


class Encoder(nn.Module):
    """Pictures uint8[N,S,S,3] and the places of their patches float[N,P,3] -> tokens float[N,P,C]."""

    def __init__(self, tower: ClipTower | siglip.Tower, position: PositionMlp | PositionWaves) -> None:
        super().__init__()
        self.tower, self.position = tower, position
        self.size, self.patch = tower.image_size, tower.hf.config.patch_size

    def forward(self, pictures: Tensor, xyz: Tensor) -> Tensor:
        x = self.tower.patches(pictures)
        return x + self.position(xyz.to(x.device))


def load_clip(folder: Path) -> ClipTower:
    """The picture tower of a CLIP folder, in float32; its text tower is not read.

    UserError: not such a folder, tensors missing or misshapen.
    """
    from accelerate import init_empty_weights
    from transformers import CLIPVisionConfig, CLIPVisionModel

    kind = _state_dict.config(folder).get("model_type")
    if kind not in ("clip", "clip_vision_model"):
        raise UserError(
            f"{folder}: config.json states model type '{kind}', expected 'clip'; give openai/clip-vit-large-patch14-336"
        )
    with init_empty_weights():
        hf = CLIPVisionModel(CLIPVisionConfig.from_pretrained(folder))
    wanted = hf.state_dict()

    def rename(name: str) -> str | None:
        own = name.removeprefix("vision_model.")
        return own if own in wanted else None

    return ClipTower(_filled(hf, folder, "CLIP's picture tower", _state_dict.select(folder, rename)))


def load_position(path: Path) -> PositionMlp:
    """LLaVA-3D's position embedding from its checkpoint folder, a part of it or a small file, in float32.

    Only these six tensors are read. UserError: one of them is missing or misshapen.
    """
    state = _state_dict.select(path, _position_name)
    width = state[WIDTH].shape[0] if WIDTH in state and state[WIDTH].ndim else 1
    with torch.device("meta"):
        position = PositionMlp(width)
    return _filled(position, path, "LLaVA-3D's position embedding", state)


def _position_name(name: str) -> str | None:
    return name.removeprefix(PREFIX) if name.startswith(PREFIX) else None


def _filled(module: M, path: Path, what: str, state: Mapping[str, Tensor]) -> M:
    """The module, which may lie on the meta device, with these tensors."""
    _state_dict.check(path, what, state, module.state_dict())
    module.load_state_dict(state, assign=True)
    return module.eval()
