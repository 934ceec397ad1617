"""Add, remove and swap patches: another folder's patches and LoRA on a loaded model, whose base is not read again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from pave.checkpoints import build, patch_folder
from pave.config import Config
from pave.models import lora, trainable
from pave.models.patched_model import PatchedModel
from pave.types import UserError
from pave.utils import registry

FRAME_SETTINGS = ("frames", "fps", "frame_sampling")
"""Settings of the base that decide which key frames its patches see."""


def add(
    model: PatchedModel,
    config: Config,
    name: str,
    folder: Path,
    overrides: Sequence[str] = (),
    trust_plugins: bool = False,
) -> Config:
    """Put the patch and the LoRA of a folder on a loaded model as patch `name`; several become `name_side`.

    Returns the config with them. Raises UserError, and changes nothing, where they do not fit; see
    `patch_folder.read_config` for plugins.
    """
    trained = patch_folder.read_config(folder, overrides, trust_plugins)
    _check_base(trained, config, folder, also=FRAME_SETTINGS)
    lora.check_not_merged(model.base.hf)
    if not trained.sides:
        raise UserError(f"{folder}: has no patch to add, only LoRA")

    sides = {}
    for side, patch in trained.sides.items():
        patch_name = name if len(trained.sides) == 1 else f"{name}_{side}"
        sides[patch_name] = dataclasses.replace(patch, side=patch.side or side)
    for new in (name, *sides):
        if new in model.patches or new in model.lora_patches:
            raise UserError(f"{folder}: this model already has a patch or LoRA '{new}'; choose another name")
        # torch refuses names that a ModuleDict has as attributes.
        if not new or "." in new or hasattr(model.patches, new):
            raise UserError(f"{folder}: '{new}' cannot name a patch; choose another name")

    build.attach_patches(model, name, sides, build.read_checked(model, trained, folder))
    return dataclasses.replace(config, sides={**config.sides, **sides})


def remove(model: PatchedModel, config: Config, name: str) -> Config:
    """Take a patch off a loaded model, and its LoRA with the last patch that it came with. Returns the config without.

    Raises UserError for an unknown patch, and where LoRA was merged.
    """
    if name not in model.patches:
        raise UserError(f"this model has no patch '{name}'; {registry.nearest(name, model.patches)}")
    lora.check_not_merged(model.base.hf)

    del model.patches[name]
    for adapter, patches in list(model.lora_patches.items()):
        if patches == [name]:
            lora.remove(model.base.hf, adapter)
            del model.lora_patches[adapter]
        elif name in patches:
            patches.remove(name)

    model.set_patches({other: model.patch_weights[other] for other in model.patches})
    return dataclasses.replace(config, sides={other: side for other, side in config.sides.items() if other != name})


def hotswap(
    model: PatchedModel, config: Config, folder: Path, overrides: Sequence[str] = (), trust_plugins: bool = False
) -> Config:
    """Replace all patches and LoRAs of a loaded model by those of a folder on the same base. Returns its config.

    Raises UserError, and changes nothing, where they do not fit; see `patch_folder.read_config` for plugins.
    """
    trained = patch_folder.read_config(folder, overrides, trust_plugins)
    _check_base(trained, config, folder)
    lora.check_not_merged(model.base.hf)
    weights = build.read_checked(model, trained, folder)

    for adapter in model.lora_patches:
        lora.remove(model.base.hf, adapter)
    model.patches.clear()
    model.lora_patches, model.patch_weights = {}, {}
    build.attach_patches(model, lora.DEFAULT, trained.sides, weights)

    frame_settings = {field: vars(trained.base)[field] for field in FRAME_SETTINGS}
    return dataclasses.replace(trained, base=dataclasses.replace(config.base, **frame_settings))


def _check_base(trained: Config, config: Config, folder: Path, also: Sequence[str] = ()) -> None:
    """Raises UserError unless a folder's patches were trained on the model's base, both of them as published."""
    patch_folder.check_same_base(trained, config, folder, also)
    if trainable.is_modified(trained.base) or trainable.is_modified(config.base):
        raise UserError(
            f"{folder}: the base was trained here or in this model, so they do not go together; load it alone"
        )
