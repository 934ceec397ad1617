"""LLaVA-3D's features: CLIP's token of each patch of a view, plus an embedding of its place in the room."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from pave.models.encoders import _state_dict, siglip
from pave.models.encoders._clip_layers import CLIP_MEAN, CLIP_STD
from pave.types import UserError

if TYPE_CHECKING:
    from transformers import CLIPVisionModel

PREFIX = "model.video_tower.video_tower.positional_embedding."
"""Of the position embedding in LLaVA-3D's checkpoint."""
WIDTH_TENSOR = "position_embedding_head.3.bias"
"""The tensor that tells its width."""
MAX_WAVELENGTH, MIN_WAVELENGTH = 32.0, 0.125
"""Metres, of the fixed position embedding."""


def crop(image: Image.Image, size: int, resample: Image.Resampling) -> np.ndarray:
    """Cut out the middle square of an image, its short side scaled to `size`: [size,size] or [size,size,3]."""
    width, height = _scaled_size(image.size, size)
    column, row = (width - size) // 2, (height - size) // 2
    return np.asarray(image.resize((width, height), resample).crop((column, row, column + size, row + size)))


def crop_intrinsic(matrix: np.ndarray, image_size: tuple[int, int], size: int) -> np.ndarray:
    """Adapt intrinsics float64[4,4] of an image of (width, height) to its `crop`."""
    width, height = _scaled_size(image_size, size)
    matrix = matrix.copy()
    matrix[0] *= width / image_size[0]
    matrix[1] *= height / image_size[1]
    # Quirk: half a pixel is counted where the image is cut by an odd number, and the cut falls on a whole one.
    matrix[0, 2] -= (width - size) / 2
    matrix[1, 2] -= (height - size) / 2
    return matrix


def _scaled_size(image_size: tuple[int, int], size: int) -> tuple[int, int]:
    """Width and height with the short side `size`, the other rounded down."""
    width, height = image_size
    short_side = min(width, height)
    return size * width // short_side, size * height // short_side


def unproject(depth: Tensor, intrinsic: Tensor, pose: Tensor, pixels: Tensor) -> Tensor:
    """Compute world points float[V,R,R,3] of the rows and columns `pixels` int64[R] of metres float[V,S,S].

    intrinsic, pose: float[V,4,4], the pose from camera to world.
    """
    z = depth[:, pixels][:, :, pixels]
    row, column = pixels[:, None], pixels[None, :]
    fx, fy = intrinsic[:, 0, 0, None, None], intrinsic[:, 1, 1, None, None]
    cx, cy = intrinsic[:, 0, 2, None, None], intrinsic[:, 1, 2, None, None]
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
        lengths = torch.logspace(math.log10(MAX_WAVELENGTH), math.log10(MIN_WAVELENGTH), width // 6)
        self.register_buffer("frequencies", 2 * math.pi / lengths)

    def forward(self, xyz: Tensor) -> Tensor:
        angles = xyz[..., None] * self.frequencies
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)
        return nn.functional.pad(waves, (0, self.width - waves.shape[-1]))


class ClipTower(nn.Module):
    """CLIP's image tower: float[N,3,S,S] -> float[N,P,C], the layer before the last, without the class token."""

    mean: Tensor
    std: Tensor

    def __init__(self, hf: CLIPVisionModel) -> None:
        super().__init__()
        self.hf = hf
        self.image_size: int = hf.config.image_size
        self.register_buffer("mean", torch.tensor(CLIP_MEAN), persistent=False)
        self.register_buffer("std", torch.tensor(CLIP_STD), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.hf(pixel_values=pixels, output_hidden_states=True).hidden_states[-2][:, 1:]

    def patches(self, images: Tensor) -> Tensor:
        """uint8[N,S,S,3] -> float[N,P,C]"""
        return self(self.normalize(images.to(self.mean.device)))

    def normalize(self, images: Tensor) -> Tensor:
        """uint8[N,S,S,3] -> float[N,3,S,S]"""
        return ((images / 255 - self.mean) / self.std).movedim(-1, 1)


class Encoder(nn.Module):
    """Images uint8[N,S,S,3] and the places of their patches float[N,P,3], in metres -> tokens float[N,P,C]."""

    def __init__(self, tower: ClipTower | siglip.Tower, position: PositionMlp | PositionWaves) -> None:
        super().__init__()
        self.tower, self.position = tower, position
        self.size, self.patch = tower.image_size, tower.hf.config.patch_size

    def forward(self, images: Tensor, xyz: Tensor) -> Tensor:
        x = self.tower.patches(images)
        return x + self.position(xyz.to(x.device))


def load_clip(folder: Path) -> ClipTower:
    """Load the image tower of a CLIP folder, in float32; its text tower is not read.

    Raises UserError: not such a folder, tensors missing or misshapen.
    """
    from accelerate import init_empty_weights
    from transformers import CLIPVisionConfig, CLIPVisionModel

    model_type = _state_dict.config(folder).get("model_type")
    if model_type not in ("clip", "clip_vision_model"):
        raise UserError(
            f"{folder}: config.json states model type '{model_type}', expected 'clip'; give "
            "openai/clip-vit-large-patch14-336"
        )
    with init_empty_weights():
        hf = CLIPVisionModel(CLIPVisionConfig.from_pretrained(folder))
    expected_names = hf.state_dict().keys()

    def tower_name(name: str) -> str | None:
        short_name = name.removeprefix("vision_model.")
        return short_name if short_name in expected_names else None

    state = _state_dict.select(folder, tower_name)
    return ClipTower(_state_dict.fill(hf, folder, "CLIP's image tower", state))


def load_position(path: Path) -> PositionMlp:
    """Load LLaVA-3D's position embedding from its checkpoint folder, a part of it or a small file, in float32.

    Only these six tensors are read. Raises UserError: one of them is missing or misshapen.
    """
    state = _state_dict.select(path, _state_dict.after_prefix([PREFIX]))
    width = state[WIDTH_TENSOR].shape[0] if WIDTH_TENSOR in state and state[WIDTH_TENSOR].ndim else 1
    with torch.device("meta"):
        position = PositionMlp(width)
    return _state_dict.fill(position, path, "LLaVA-3D's position embedding", state)
