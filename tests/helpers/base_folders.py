"""What tests of `llava_onevision` and others share."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pave.models.bases.llava_onevision import Base as LlavaOnevision
from pave.models.patched_model import PatchedModel


def logits(base: LlavaOnevision) -> Tensor:
    """Of a fixed video and question."""
    torch.manual_seed(0)
    ids = torch.tensor([[1, *[-200] * base.num_visual_tokens(2), 5, 6, 7]])
    labels = torch.where(ids == -200, -100, ids)
    with torch.no_grad():
        return PatchedModel(base, {})(ids, torch.ones_like(ids).bool(), labels, torch.randn(1, 2, 3, 32, 32))["logits"]


def untie(source: Path, folder: Path, scale: float) -> Path:
    """The same base with a head of its own, in two files and an index."""
    shutil.copytree(source, folder)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    state["lm_head.weight"] = scale * state["model.embed_tokens.weight"]
    names = sorted(state)
    index = {}
    for i, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{i}-of-00002.safetensors"
        save_file({name: state[name] for name in part}, folder / file, {"format": "pt"})
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "tie_word_embeddings": False}))
    return folder
