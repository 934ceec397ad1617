"""Load any checkpoint folder, ours or official, as a model."""

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
from pave.checkpoints.archive import checkpoint_folder
from pave.config import Config, LoraConfig
from pave.models import lora
from pave.models.patched_model import PatchedModel


def load_model(
    ckpt: Path,
    base: str | None,
    overrides: Sequence[str] = (),
    base_only: bool = False,
    device: str | None = None,
    trust_plugins: bool = False,
    recipe: Path | None = None,
) -> tuple[PatchedModel, Config]:
    """Load a trained folder or its zip, ours or official, onto a device; `base_only` leaves patches and LoRA out.

    `base` is another place of the base, `overrides` are `key=value`. `recipe` is a config for what an official folder
    does not state, its side-channels and data; a folder of ours states all. Raises UserError where there is no such
    folder, a tensor is missing or misshapen, and for a plugin from outside pave, see `patch_folder.read_config`.
    """
    ckpt = checkpoint_folder(ckpt)
    if base is not None:
        overrides = [*overrides, f"base.path={base}"]

    if base_only:
        config = _without_patches(_read_config(ckpt, overrides, trust_plugins, recipe))
        model = build.create(config)
    elif official.is_official(ckpt):
        model, config = official.load(ckpt, _official_settings(overrides, recipe))
    else:
        model, config = build.load(ckpt, overrides, trust_plugins)
    return model.eval().to(choose_device(device)), config


def _official_settings(overrides: Sequence[str], recipe: Path | None) -> Config:
    return configs.load(recipe, overrides) if recipe else configs.from_overrides(overrides)


def _read_config(ckpt: Path, overrides: Sequence[str], trust_plugins: bool, recipe: Path | None) -> Config:
    if official.is_official(ckpt):
        return official.read_official(ckpt, _official_settings(overrides, recipe)).config
    return patch_folder.read_config(ckpt, overrides, trust_plugins)


def _without_patches(config: Config) -> Config:
    data = dataclasses.replace(config.data, sides=None)
    return dataclasses.replace(config, sides={}, lora=LoraConfig(r=0), data=data)


def choose_device(name: str | None) -> str:
    """The device that a process works on: `name`, or a GPU if there is one; under torchrun one of its own."""
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    return f"cuda:{os.environ['LOCAL_RANK']}" if name == "cuda" and "LOCAL_RANK" in os.environ else name


def fingerprint(model: PatchedModel) -> str:
    """sha256 of all patches and LoRA, and of the base's vectors (norms, biases), which any other training changes."""
    tensors = {f"patches.{name}": x for name, x in model.patches.state_dict().items()}
    for adapter in model.lora_patches:
        tensors |= {f"{adapter}.{name}": x for name, x in lora.state(model.base.hf, adapter).items()}
    tensors |= {f"base.{name}": x for name, x in model.base.named_parameters() if x.ndim == 1}
    return hashlib.sha256(save({name: x.detach().cpu().contiguous() for name, x in tensors.items()})).hexdigest()
