"""The SigLIP tower of a LLaVA-OneVision base, or Google's, without the language model around it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from pave.models.encoders import _state_dict
from pave.types import UserError

LMMS = r"^model\.vision_tower\.vision_tower\.vision_model\."
"""Before the tower's own names in files of lmms-lab."""
HF = r"^(model\.)?vision_tower\.(vision_model\.)?"
"""The same in each spelling of transformers: in memory, in files of version 5, in files of the hub."""
GOOGLE = r"^vision_model\."
"""The same in the release of SigLIP itself."""
HEADS = {1152: 16}
"""By width, of published towers; the weights do not tell."""
STATED = (
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
    """float[N,3,S,S] -> float[N,P,C], what the last encoder layer gives, before the norm after it."""

    frames = 1
    """Frames that see one another."""

    def __init__(self, hf: Any) -> None:
        super().__init__()
        self.hf = hf
        self.image_size: int = hf.config.image_size

    def forward(self, pixels: Tensor) -> Tensor:
        return features(self.hf, pixels)

    def patches(self, frames: Tensor) -> Tensor:
        """What `prepare` made of T frames -> float[T,P,C]."""
        return self(normalise(frames.to(self.hf.device)))


def features(hf: Any, pixels: Tensor) -> Tensor:
    """float[N,3,S,S] -> float[N,P,C] of a transformers tower, before the last norm: layer 26 of SigLIP's 27."""
    return hf(pixels.to(hf.dtype), output_hidden_states=True).hidden_states[-1]


def prepare(picture: np.ndarray, size: int) -> np.ndarray:
    """uint8[H,W,3] -> uint8[size,size,3]: PIL bicubic to the tower's square, aspect ignored, no crop."""
    return np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC))


def normalise(pictures: Tensor) -> Tensor:
    """uint8[T,S,S,3] -> float[T,3,S,S] in [-1,1]."""
    return pictures.permute(0, 3, 1, 2).float().div(255).sub(0.5).div(0.5)


def load(path: Path, heads: int | None = None) -> Tower:
    """A tower in eval mode and float32 from a base folder of lmms-lab or transformers, or from google/siglip's.

    Of Google's the last layer is left out, as in every base. UserError: unreadable, another model, number of heads
    unknown, tensors missing, left over or of the wrong shape.
    """
    from transformers import SiglipVisionConfig, SiglipVisionModel

    state, spare = _state_dict.select(path, _base_name), 0
    if not state:
        state, spare = _state_dict.select(path, _google_name), 1
    told = _state_dict.config(path)
    told = told if told.get("model_type") == "siglip_vision_model" else told.get("vision_config", {})
    settings = {
        **shapes(path, {name: x.shape for name, x in state.items()}),
        **{k: told[k] for k in STATED if k in told},
    }
    heads = heads or settings.get("num_attention_heads") or HEADS.get(settings["hidden_size"])
    if not heads:
        raise UserError(
            f"{path}: the number of heads of a {settings['hidden_size']}-wide tower is not in its files; "
            "state num_attention_heads under vision_config in config.json"
        )
    depth = settings["num_hidden_layers"] - spare
    if spare:
        state = {name: x for name, x in state.items() if not name.startswith(f"encoder.layers.{depth}.")}
    settings |= {"num_attention_heads": heads, "num_hidden_layers": depth, "vision_use_head": False}
    with torch.device("meta"):
        hf = SiglipVisionModel(SiglipVisionConfig(**settings))
    _state_dict.check(path, "a SigLIP tower", state, hf.state_dict())
    hf.load_state_dict(state, assign=True)
    hf.embeddings.position_ids = torch.arange(hf.embeddings.num_positions)[None]  # counted, not stored
    return Tower(hf).eval()


def shapes(path: Path, sizes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """A tower's settings as its tensors' sizes tell them, without the number of heads. UserError: no such tower."""
    needed = (
        "embeddings.patch_embedding.weight",
        "embeddings.position_embedding.weight",
        "encoder.layers.0.mlp.fc1.weight",
    )
    wrong = [name for name, dims in zip(needed, (4, 2, 2)) if len(sizes.get(name, ())) != dims]
    if wrong:
        raise UserError(
            f"{path}: holds no SigLIP vision tower: {wrong[0]} is not among its tensors; give a LLaVA-OneVision base"
        )
    (width, _, patch, _), (places, _), (inner, _) = (sizes[name] for name in needed)
    edge = math.isqrt(places)
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": _state_dict.layers(sizes),
        # so400m/14-384 covers 27 * 14 of its 384 pixels; the rest of the edge is cut off by the convolution.
        "image_size": 384 if (edge, patch) == (27, 14) else edge * patch,
        "patch_size": patch,
    }


def _base_name(name: str) -> str | None:
    for prefix in (LMMS, HF):
        own, found = re.subn(prefix, "", name)
        if found:
            return _kept(own)
    return None


def _google_name(name: str) -> str | None:
    own, found = re.subn(GOOGLE, "", name)
    return _kept(own) if found else None


def _kept(own: str) -> str | None:
    """Not the pooling head, which features never pass, nor the counted positions."""
    return None if own.startswith("head.") or own == "embeddings.position_ids" else own
