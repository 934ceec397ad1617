"""Reads and writes our checkpoint folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save_file

from pave import config as configs
from pave.config import Config
from pave.models import lora, trainable
from pave.models.patched_model import PatchedModel
from pave.types import UserError
from pave.utils import registry
from pave.utils.atomic import atomic_folder

PATCH_FILE, ADAPTER_FILE, CONFIG_FILE = "patch.safetensors", "adapter_model.safetensors", "pave.yaml"
SAME_BASE = ("name", "path", "newline", "pool")
"""What two configs on one base have in common."""


def check_same_base(trained: Config, config: Config, folder: Path, also: Sequence[str] = ()) -> None:
    """Raises UserError unless a folder was trained on the base of `config`."""
    for field in (*SAME_BASE, *also):
        found, expected = getattr(trained.base, field), getattr(config.base, field)
        if field == "path":
            found, expected = configs.resolve(found), configs.resolve(expected)
        if found != expected:
            raise UserError(
                f"{folder / CONFIG_FILE}: base.{field} is '{found}', this model's is '{expected}'; expected the same "
                f"base (if it is the same, only elsewhere, set base.{field} there or as an override)"
            )


def write(model: PatchedModel, config: Config, folder: Path) -> None:
    """Our files into an existing folder; `save` is the safe way to a finished one.

    Raises UserError where the model has the LoRAs of several folders.
    """
    config = effective_config(model, config)
    (folder / CONFIG_FILE).write_text(configs.dump(config))
    save_file({k: v.detach().contiguous().cpu() for k, v in model.patches.state_dict().items()}, folder / PATCH_FILE)
    for name in model.lora_patches:
        lora.write_settings(model.base.lora_targets, config.lora, config.base.path, folder)
        save_file({k: v.contiguous().cpu() for k, v in lora.state(model.base.hf, name).items()}, folder / ADAPTER_FILE)
    if model.modified_base_tensors:
        save_file(
            {k: v.contiguous().cpu() for k, v in trainable.modified_state(model).items()}, folder / trainable.BASE_FILE
        )


def effective_config(model: PatchedModel, config: Config) -> Config:
    """The config with the weights and the LoRA that the model has now. Raises UserError where it has several LoRAs."""
    if len(model.lora_patches) > 1:
        raise UserError(
            f"this model has several LoRAs ({', '.join(model.lora_patches)}), a folder holds one; remove a patch"
        )
    sides = {name: dataclasses.replace(side, weight=model.patch_weights[name]) for name, side in config.sides.items()}
    adapter = dataclasses.replace(config.lora, r=0)
    for name in model.lora_patches:
        adapter = lora.effective_config(model.base.hf, name, config.lora)
    return dataclasses.replace(config, sides=sides, lora=adapter)


def save(model: PatchedModel, config: Config, folder: Path) -> None:
    """Write a patch folder whole or not at all."""
    with atomic_folder(folder) as temporary:
        write(model, config, temporary)


def read_config(folder: Path, overrides: Sequence[str] = (), trust_plugins: bool = False) -> Config:
    """The config of a folder of ours, or a YAML file by itself, with `key=value` overrides.

    Plugins are code that runs, and the folder may be a stranger's: UserError for one that is neither pave's nor named
    in the overrides, unless they are trusted.
    """
    file = folder if folder.suffix == ".yaml" else folder / CONFIG_FILE
    if file != folder and not file.is_file():
        raise UserError(
            f"{folder}: no {CONFIG_FILE} in it; expected a folder that `pave train` wrote "
            "(`pave convert` makes one of a released folder)"
        )
    config = configs.load(file, overrides, is_stored=file.name == CONFIG_FILE)
    if not trust_plugins:
        named = configs.named_plugins(configs.from_overrides(overrides)).values()
        for setting, plugin in own_plugins(config).items():
            if plugin not in named:
                raise UserError(
                    f"{folder}: names the plugin {plugin[1]!r} ({setting!r}), code from outside pave that would run; "
                    "if you trust it, add --trust-plugins (in Python trust_plugins=True)"
                )
    return config


def own_plugins(config: Config) -> dict[str, tuple[str, str]]:
    """Kind and name, by setting, of the plugins of a config that are not pave's."""
    return {
        setting: named for setting, named in configs.named_plugins(config).items() if not registry.is_shipped(*named)
    }
