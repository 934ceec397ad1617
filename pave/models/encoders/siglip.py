"""The SigLIP tower of a LLaVA-OneVision base, or Google's, without the LLM around it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from pave.models.encoders import _state_dict
from pave.types import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, SiglipVisionModel

LMMS_PREFIX = r"^model\.vision_tower\.vision_tower\.vision_model\."
"""Before the tower's own names in files of lmms-lab."""
HF_PREFIX = r"^(model\.)?vision_tower\.(vision_model\.)?"
"""The same in each spelling of transformers: in memory, in files of version 5, in files of the hub."""
GOOGLE_PREFIX = r"^vision_model\."
"""The same in the checkpoints of Google."""
HEADS = {1152: 16}
"""By width, of published towers; the weights do not tell."""
SETTING_NAMES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "image_size",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
)
"""Settings that a config.json may state."""


class Tower(nn.Module):
    """float[N,3,S,S] -> float[N,P,C], hidden states of the last encoder layer, before the norm after it."""

    frames = 1
    """Frames that see one another."""

    def __init__(self, hf: SiglipVisionModel) -> None:
        super().__init__()
        self.hf = hf
        self.image_size: int = hf.config.image_size

    def forward(self, pixels: Tensor) -> Tensor:
        return encode_pixels(self.hf, pixels)

    def patches(self, frames: Tensor) -> Tensor:
        """Encode T frames from `prepare` into float[T,P,C]."""
        return self(normalize(frames.to(self.hf.device)))


def encode_pixels(hf: PreTrainedModel, pixels: Tensor) -> Tensor:
    """Encode float[N,3,S,S] into float[N,P,C] by a transformers tower, before its last norm: layer 26 of 27."""
    return hf(pixels.to(hf.dtype), output_hidden_states=True).hidden_states[-1]


def prepare(image: np.ndarray, size: int) -> np.ndarray:
    """uint8[H,W,3] -> uint8[size,size,3]: PIL bicubic to the tower's square, aspect ignored, no crop."""
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))


def normalize(images: Tensor) -> Tensor:
    """uint8[T,S,S,3] -> float[T,3,S,S] in [-1,1]."""
    return images.permute(0, 3, 1, 2).float().div(255).sub(0.5).div(0.5)


def load(path: Path, heads: int | None = None) -> Tower:
    """Load a tower in eval mode and float32 from a base folder of lmms-lab or transformers, or from google/siglip's.

    Of Google's the last layer is left out, as in every base. Raises UserError: unreadable, another model, number of
    heads unknown, tensors missing, unexpected or misshapen.
    """
    from transformers import SiglipVisionConfig, SiglipVisionModel

    state, from_google = _state_dict.select(path, _base_name), False
    if not state:
        state, from_google = _state_dict.select(path, _google_name), True

    settings = tower_settings(path, {name: tensor.shape for name, tensor in state.items()})
    config_json = _state_dict.config(path)
    if config_json.get("model_type") != "siglip_vision_model":
        config_json = config_json.get("vision_config", {})
    settings |= {name: config_json[name] for name in SETTING_NAMES if name in config_json}

    heads = heads or settings.get("num_attention_heads") or HEADS.get(settings["hidden_size"])
    if not heads:
        raise UserError(
            f"{path}: the number of heads of a {settings['hidden_size']}-wide tower is not in its files; "
            "state num_attention_heads under vision_config in config.json"
        )

    if from_google:
        settings["num_hidden_layers"] -= 1
        last_layer = f"encoder.layers.{settings['num_hidden_layers']}."
        state = {name: tensor for name, tensor in state.items() if not name.startswith(last_layer)}
    settings |= {"num_attention_heads": heads, "vision_use_head": False}

    with torch.device("meta"):
        hf = SiglipVisionModel(SiglipVisionConfig(**settings))
    _state_dict.fill(hf, path, "a SigLIP tower", state)
    hf.embeddings.position_ids = torch.arange(hf.embeddings.num_positions)[None]  # counted, not stored
    return Tower(hf).eval()


def tower_settings(path: Path, shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Settings of a tower by the shapes of its tensors, without the number of heads. Raises UserError: no tower."""
    expected_dims = {
        "embeddings.patch_embedding.weight": 4,
        "embeddings.position_embedding.weight": 2,
        "encoder.layers.0.mlp.fc1.weight": 2,
    }
    wrong = [name for name, dims in expected_dims.items() if len(shapes.get(name, ())) != dims]
    if wrong:
        raise UserError(
            f"{path}: holds no SigLIP vision tower: {wrong[0]} is not among its tensors; give a LLaVA-OneVision base"
        )

    (width, _, patch, _), (positions, _), (inner, _) = (shapes[name] for name in expected_dims)
    edge = math.isqrt(positions)
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": _state_dict.count_layers(shapes),
        # so400m/14-384 covers 27 * 14 of its 384 pixels; the rest of the edge is cut off by the convolution.
        "image_size": 384 if (edge, patch) == (27, 14) else edge * patch,
        "patch_size": patch,
    }


def _base_name(name: str) -> str | None:
    for prefix in (LMMS_PREFIX, HF_PREFIX):
        if re.match(prefix, name):
            return _needed(re.sub(prefix, "", name))
    return None


def _google_name(name: str) -> str | None:
    return _needed(re.sub(GOOGLE_PREFIX, "", name)) if re.match(GOOGLE_PREFIX, name) else None


def _needed(tower_name: str) -> str | None:
    """The name, but for the pooling head, which features never pass, and the positions, which are counted."""
    if tower_name.startswith("head.") or tower_name == "embeddings.position_ids":
        return None
    return tower_name
