"""Read and write our checkpoint folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from pave import config as configs
from pave.config import Config
from pave.models import lora, trainable
from pave.models.patched_model import PatchedModel
from pave.types import UserError
from pave.utils import registry
from pave.utils.atomic import atomic_folder

PATCH_FILE = "patch.safetensors"
ADAPTER_FILE = "adapter_model.safetensors"
CONFIG_FILE = "pave.yaml"
SAME_BASE = ("name", "path", "newline", "pool")
"""Settings that two configs on one base have in common."""


def save(model: PatchedModel, config: Config, folder: Path) -> None:
    """Write a patch folder whole or not at all."""
    with atomic_folder(folder) as temporary:
        write(model, config, temporary)


def write(model: PatchedModel, config: Config, folder: Path) -> None:
    """Write our files into an existing folder; `save` is the safe way to a finished one.

    Raises UserError where the model has the LoRAs of several folders.
    """
    config = effective_config(model, config)
    (folder / CONFIG_FILE).write_text(configs.dump(config))
    _save_tensors(model.patches.state_dict(), folder / PATCH_FILE)
    for name in model.lora_patches:
        lora.write_settings(model.base.lora_targets, config.lora, config.base.path, folder)
        _save_tensors(lora.state(model.base.hf, name), folder / ADAPTER_FILE)
    if model.modified_base_tensors:
        _save_tensors(trainable.modified_state(model), folder / trainable.BASE_FILE)


def _save_tensors(state: Mapping[str, Tensor], file: Path) -> None:
    save_file({name: x.detach().contiguous().cpu() for name, x in state.items()}, file)


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


def read_config(folder: Path, overrides: Sequence[str] = (), trust_plugins: bool = False) -> Config:
    """Read the config of a folder of ours, or a YAML file by itself, with `key=value` overrides.

    Plugins are code that runs, and the folder may be a stranger's: UserError for one that is neither pave's nor named
    in the overrides, unless they are trusted.
    """
    file = folder if folder.suffix == ".yaml" else folder / CONFIG_FILE
    if file != folder and not file.is_file():
        raise UserError(
            f"{folder}: no {CONFIG_FILE} in it; expected a folder that `pave train` wrote "
            "(`pave convert` makes one of an official folder)"
        )
    config = configs.load(file, overrides, is_stored=file.name == CONFIG_FILE)
    if trust_plugins:
        return config

    named_by_user = configs.named_plugins(configs.from_overrides(overrides)).values()
    for setting, plugin in foreign_plugins(config).items():
        if plugin not in named_by_user:
            raise UserError(
                f"{folder}: names the plugin {plugin[1]!r} ({setting!r}), code from outside pave that would run; "
                "if you trust it, add --trust-plugins (in Python trust_plugins=True)"
            )
    return config


def foreign_plugins(config: Config) -> dict[str, tuple[str, str]]:
    """Kind and name, by setting, of the plugins of a config that do not come with pave."""
    plugins = configs.named_plugins(config)
    return {setting: plugin for setting, plugin in plugins.items() if not registry.is_shipped(*plugin)}


def check_same_base(trained: Config, config: Config, folder: Path, also: Sequence[str] = ()) -> None:
    """Raises UserError unless a folder was trained on the base of `config`, and with its settings `also`."""
    for field in (*SAME_BASE, *also):
        actual, expected = vars(trained.base)[field], vars(config.base)[field]
        if field == "path":
            actual, expected = configs.resolve(actual), configs.resolve(expected)
        if actual != expected:
            raise UserError(
                f"{folder / CONFIG_FILE}: base.{field} is '{actual}', this model's is '{expected}'; expected the same "
                f"base (if it is the same, only elsewhere, set base.{field} there or as an override)"
            )
