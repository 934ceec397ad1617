"""Patch folders as if trained: fresh ones with random numbers in what starts at zero."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer

from helpers.tiny_model import SIDE_DIM, TinySetup, make_config
from pave.checkpoints import build, patch_folder
from pave.config import Config, LoraConfig, PatchConfig
from pave.data.collate import collate
from pave.data.dataset import QuestionDataset
from pave.models.patched_model import PatchedModel

SMALL = {"side_dim": SIDE_DIM, "hidden_dim": 16, "side_hidden_dim": 16, "features": "features/audio"}


def side_config(tiny_setup: TinySetup, sides: dict[str, dict[str, Any]], **lora_config: Any) -> Config:
    """The tiny run with these sides, each the small geometry with changes, and this LoRA."""
    return dataclasses.replace(
        make_config(*tiny_setup),
        sides={name: PatchConfig(**{"side": "audio", **SMALL, **changes}) for name, changes in sides.items()},
        lora=LoraConfig(**{"r": 2, "alpha": 4, "dropout": 0.1, **lora_config}),
    )


def save_trained(config: Config, folder: Path, seed: int) -> Path:
    """A folder whose patches and LoRA change answers."""
    torch.manual_seed(seed)
    model = build.create(config)
    for patch in model.patches.values():
        torch.nn.init.normal_(patch.out_norm.weight, std=0.5)
    for name, parameter in model.base.hf.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    patch_folder.save(model, config, folder)
    return folder


def make_folders(tiny_setup: TinySetup, out: Path) -> dict[str, Path]:
    """On one base: two single patches of different geometry, rank and alpha, two patches, LoRA alone, a patch alone."""
    kinds = {
        "audio": side_config(tiny_setup, {"audio": {}}),
        "music": side_config(tiny_setup, {"music": {"hidden_dim": 8, "num_layers": 3, "heads": 2}}, r=4, alpha=6),
        "two_patches": side_config(
            tiny_setup, {"audio": {}, "dense": {"num_layers": 1, "neighborhood": "global"}}, r=3
        ),
        "lora_only": side_config(tiny_setup, {}, r=2),
        "patch_only": side_config(tiny_setup, {"audio": {}}, r=0),
    }
    return {name: save_trained(config, out / name, i) for i, (name, config) in enumerate(kinds.items())}


def make_batch(config: Config, model: PatchedModel, left: bool = False) -> dict[str, Any]:
    """Two questions of the tiny data with answers, or left-padded without."""
    data = QuestionDataset(config, model.base, "train", with_answers=not left)
    batch = collate([data[0], data[4]], model.base.tokenizer.pad_token_id, left)
    if left:
        del batch["labels"]
    return batch


def tensors(model: PatchedModel) -> dict[str, torch.Tensor]:
    """Everything that a model computes with, by name: its state, its weights, its LoRAs' scales."""
    scales = {
        f"{name}.{adapter}": torch.tensor([scale, adapter in module.active_adapters])
        for name, module in model.base.hf.named_modules()
        if isinstance(module, LoraLayer)
        for adapter, scale in module.scaling.items()
    }
    weights = {f"weight {name}": torch.tensor(weight) for name, weight in model.patch_weights.items()}
    return {**{name: x.clone() for name, x in model.state_dict().items()}, **scales, **weights}
