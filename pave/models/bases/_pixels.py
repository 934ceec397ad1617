"""Frames as the pixels of a tower, as the image processors of transformers make them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def resize(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize uint8[H,W,3] to uint8[height,width,3] with PIL's bicubic filter, whatever the aspect."""
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))


def normalize(frames: Sequence[np.ndarray], mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Stack uint8[h,w,3] of one size as float[T,3,h,w] in 0..1, minus `mean` and over `std` of each channel."""
    pixels = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 255
    return (pixels - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
