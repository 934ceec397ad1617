"""`pave convert`: an official folder into ours, and ours into the official layout; no bit of a tensor changes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from pave.checkpoints import build, official, patch_folder
from pave.checkpoints.official import RenamedTensors
from pave.config import Config
from pave.media import feature_files
from pave.models import lora, state_dicts
from pave.models.patched_model import PatchedModel
from pave.types import UserError


def to_ours(folder: Path, config: Config, out: Path) -> None:
    """Convert an official folder; `config` has what `official_reader` cannot tell. Needs no weights of the base.

    Left out is what is no part of the model: `start_end_tokens`, and copies of the base's embedding and head.
    Raises UserError naming a tensor that is missing, extra or misshapen, and where `out` exists.
    """
    _check_new(out)
    checkpoint = official.read_official(folder, config)
    model = build.create(checkpoint.config, weights=False)
    assign_tensors(model, official.rename_tensors(model, checkpoint))
    patch_folder.save(model, checkpoint.config, out)


def to_official(folder: Path, out: Path, overrides: Sequence[str] = (), trust_plugins: bool = False) -> None:
    """Convert a folder of ours into the official layout. Needs no weights of the base, only its shapes.

    Raises UserError naming a tensor that is missing, extra or misshapen, for what the official code cannot do, and
    where `out` exists.
    """
    _check_new(out)
    config = patch_folder.read_config(folder, overrides, trust_plugins)
    model = build.create(config, weights=False)

    patch_file, adapter_file = folder / patch_folder.PATCH_FILE, folder / patch_folder.ADAPTER_FILE
    patches = feature_files.read_safetensors(patch_file).state
    adapter = feature_files.read_safetensors(adapter_file).state if config.lora.r else {}
    state_dicts.check_same(state_dicts.shapes(model.patches.state_dict()), state_dicts.shapes(patches), patch_file)
    state_dicts.check_same(state_dicts.shapes(lora.state(model.base.hf)), state_dicts.shapes(adapter), adapter_file)

    assign_tensors(model, RenamedTensors(patches, adapter))
    official.save(model, config, out)


def _check_new(out: Path) -> None:
    if out.exists():
        raise UserError(f"{out}: exists; give the name of a new folder")


def assign_tensors(model: PatchedModel, tensors: RenamedTensors) -> None:
    """Put tensors in the place of a skeleton's parameters; loading would turn them into its dtype."""
    _assign(model.patches, tensors.patches)
    suffix = f".{lora.DEFAULT}.weight"
    _assign(
        model.base.hf,
        {name.removeprefix(lora.PREFIX).removesuffix(".weight") + suffix: x for name, x in tensors.adapter.items()},
    )


def _assign(root: nn.Module, tensors: dict[str, Tensor]) -> None:
    for name, x in tensors.items():
        module, _, parameter = name.rpartition(".")
        setattr(root.get_submodule(module), parameter, nn.Parameter(x, requires_grad=False))
