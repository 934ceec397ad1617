"""Golden weights of the encoders as in their publishers' files; tensors that no feature passes hold NaN."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from helpers.paths import GOLDEN

LANGUAGEBIND_CONFIG = {"vision_config": {"num_attention_heads": 4, "hidden_act": "gelu", "num_hidden_layers": 3}}
PPLLAVA_CONFIG = {"vision_config": {"num_attention_heads": 4, "num_hidden_layers": 6}}
PPLLAVA_EMBEDDINGS = "multi_modal_projector.clip_text_model.embeddings."


def load_arrays(file: str) -> dict[str, Tensor]:
    """Arrays of an .npz file of the golden encoders."""
    return {name: torch.from_numpy(x) for name, x in np.load(GOLDEN / "encoders" / file).items()}


def write_checkpoint(folder: Path, state: dict[str, Tensor], config: dict[str, Any] | None = None) -> Path:
    """Write a folder with model.safetensors and, if there is one, config.json."""
    folder.mkdir(exist_ok=True)
    save_file(state, folder / "model.safetensors", {"format": "pt", "heads": "4"})
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def with_nan_layer(state: dict[str, Tensor], last: str, unused: str) -> dict[str, Tensor]:
    """The state with one layer more, after the last one that is used."""
    return state | {name.replace(last, unused): x * torch.nan for name, x in state.items() if last in name}


def languagebind(prefix: str = "vision_model.") -> dict[str, Tensor]:
    """LanguageBind's tower of width 64, its names after `prefix`."""
    state = load_file(GOLDEN / "encoders/languagebind_video/tower.safetensors")
    state = with_nan_layer(state, "layers.1.", "layers.2.")
    state |= {f"vision_model.post_layernorm.{name}": torch.full((64,), torch.nan) for name in ("weight", "bias")}
    return {name.replace("vision_model.", prefix): x for name, x in state.items()}


def ppllava() -> dict[str, Tensor]:
    """PPLLaVA's two towers and projector."""
    state = {**load_arrays("ppllava/bt_weights.npz"), **load_arrays("ppllava/prompt_weights.npz")}
    for name, first in (("position_embedding", 0), ("position_embedding_res", 20)):
        table = torch.full((248, 40), torch.nan)
        used = state[PPLLAVA_EMBEDDINGS + name]
        table[first : first + len(used)] = used
        state[PPLLAVA_EMBEDDINGS + name] = table
    for part in ("encoder.layers.{}.", "btadapter_S_layers.{}.", "btadapter_T_layers.{}."):
        last = 4 if part.startswith("encoder") else 2
        state = with_nan_layer(state, part.format(last), part.format(last + 1))
    norm = "vision_tower.vision_model.post_layernorm"
    state |= {f"{norm}.{name}": torch.full((32,), torch.nan) for name in ("weight", "bias")}
    return {**state, "image_newline": torch.zeros(48)}


def video_panda() -> dict[str, Tensor]:
    """Video-Panda's tower."""
    state = load_arrays("video_panda/weights.npz")
    unused = {name: x for name, x in state.items() if "lmhra1" in name}
    return state | {n.replace("lmhra1", "lmhra2"): torch.full_like(x.float(), torch.nan) for n, x in unused.items()}
