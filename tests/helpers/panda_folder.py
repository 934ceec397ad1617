"""A folder of a tiny Video-Panda, as published."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from helpers.paths import GOLDEN
from helpers.tiny_bases import TEXT, llama_tokenizer, save_published

GOLDENS = GOLDEN / "encoders/video_panda"
FRAMES, SIZE = 4, 112


def make_panda(folder: Path) -> Path:
    """Make tower and projector of the golden case, also under the names for images, and traces of a teacher."""
    tokenizer = llama_tokenizer(video=False)
    torch.manual_seed(0)
    settings = {**TEXT, "hidden_size": 80, "vocab_size": len(tokenizer), "max_position_embeddings": 512}
    llm = LlamaForCausalLM(LlamaConfig(**settings))

    state = {**llm.state_dict(), **{n: torch.from_numpy(x) for n, x in np.load(GOLDENS / "weights.npz").items()}}
    state["model.video_tower.lmhra2.pos_embed.0.weight"] = torch.full((64,), torch.nan)
    image_names = {"video_tower": "vision_tower", "video_projector": "mm_projector"}
    state |= {n.replace(old, new): x for n, x in state.items() for old, new in image_names.items() if old in n}
    state |= {f"model.{name}.norm.weight": torch.zeros(1) for name in ("video_teacher", "video_tower_compressor")}

    published = {"model_type": "videopanda", "video_hidden_size": 64, "image_size": SIZE, "mm_use_im_start_end": False}
    return save_published(state, {**llm.config.to_dict(), **published}, tokenizer, folder)
