"""Loads any checkpoint folder, ours or official, as a model."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save

from pave import config as configs
from pave.checkpoints import build, official, patch_folder
from pave.config import Config, LoraConfig
from pave.models import lora
from pave.models.patched_model import PatchedModel


def fingerprint(model: PatchedModel) -> str:
    """sha256 of all patches and LoRA, and of the base's vectors (norms, biases), which any other training moves."""
    tensors = {f"patches.{name}": x for name, x in model.patches.state_dict().items()}
    tensors |= {
        f"{adapter}.{k}": x for adapter in model.lora_patches for k, x in lora.state(model.base.hf, adapter).items()
    }
    tensors |= {f"base.{name}": x for name, x in model.base.named_parameters() if x.ndim == 1}
    return hashlib.sha256(save({name: x.detach().cpu().contiguous() for name, x in tensors.items()})).hexdigest()


def device(chosen: str | None) -> str:
    """Where a process works: on the chosen device or a GPU if there is one, under torchrun on one of its own."""
    chosen = chosen or ("cuda" if torch.cuda.is_available() else "cpu")
    return f"cuda:{os.environ['LOCAL_RANK']}" if chosen == "cuda" and "LOCAL_RANK" in os.environ else chosen


def load_model(
    ckpt: Path,
    base: str | None,
    overrides: Sequence[str] = (),
    base_only: bool = False,
    device: str | None = None,
    trust_plugins: bool = False,
) -> tuple[PatchedModel, Config]:
    """A trained folder, ours or a released one, on a device; `base_only` leaves its patches and LoRA out.

    UserError: see `checkpoint.read_config` for plugins.
    """
    if base is not None:
        overrides = [*overrides, f"base.path={base}"]
    released, given = official.is_official(ckpt), configs.from_overrides(overrides)
    if base_only:
        if released:
            config = official.read(ckpt, given).config
        else:
            config = patch_folder.read_config(ckpt, overrides, trust_plugins)
        data = dataclasses.replace(config.data, sides=None)
        config = dataclasses.replace(config, sides={}, lora=LoraConfig(r=0), data=data)
        model = build.create(config)
    elif released:
        model, config = official.load(ckpt, given)
    else:
        model, config = build.load(ckpt, overrides, trust_plugins)
    return model.eval().to(device or ("cuda" if torch.cuda.is_available() else "cpu")), config
