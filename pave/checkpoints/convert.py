"""`pave convert`: a released folder into ours, and ours into the released layout; no bit of a tensor changes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from pave.checkpoints import build, official, patch_folder
from pave.checkpoints.official import RenamedTensors
from pave.config import Config
from pave.media import feature_files
from pave.models import lora, state_dicts
from pave.models.patched_model import PatchedModel
from pave.types import UserError


def to_ours(folder: Path, given: Config, out: Path) -> None:
    """A released folder as one of ours; `given` has what `official.read` does not find. Needs no weights of the base.

    Left behind is what is no part of the model: `start_end_tokens`, and copies of the base's embedding and head.
    Raises UserError naming a tensor that is missing, extra or misshapen, and where `out` exists.
    """
    _check_new(out)
    content = official.read(folder, given)
    model = build.create(content.config, weights=False)
    assign_tensors(model, official.rename(model, content))
    patch_folder.save(model, content.config, out)


def to_official(folder: Path, out: Path, overrides: Sequence[str] = (), trust_plugins: bool = False) -> None:
    """A folder of ours in the released layout. Needs no weights of the base, only its shapes.

    Raises UserError naming a tensor that is missing, extra or misshapen, for what the official code cannot do, and
    where `out` exists.
    """
    _check_new(out)
    config = patch_folder.read_config(folder, overrides, trust_plugins)
    model = build.create(config, weights=False)
    file, adapter_file = folder / patch_folder.PATCH_FILE, folder / patch_folder.ADAPTER_FILE
    patches = feature_files.read_safetensors(file).state
    adapter = feature_files.read_safetensors(adapter_file).state if config.lora.r else {}
    state_dicts.check_same(state_dicts.shapes(model.patches.state_dict()), state_dicts.shapes(patches), file)
    state_dicts.check_same(state_dicts.shapes(lora.state(model.base.hf)), state_dicts.shapes(adapter), adapter_file)
    assign_tensors(model, RenamedTensors(patches, adapter))
    official.save(model, config, out)


def _check_new(out: Path) -> None:
    if out.exists():
        raise UserError(f"{out}: exists; give the name of a new folder")


def assign_tensors(model: PatchedModel, named: RenamedTensors) -> None:
    """Tensors in place of a skeleton's parameters; loading would turn them into its dtype."""
    ending = f".{lora.DEFAULT}.weight"
    adapter = {name.removeprefix(lora.PREFIX).removesuffix(".weight") + ending: x for name, x in named.adapter.items()}
    for root, tensors in ((model.patches, named.patches), (model.base.hf, adapter)):
        for name, x in tensors.items():
            parent, _, leaf = name.rpartition(".")
            setattr(root.get_submodule(parent), leaf, nn.Parameter(x, requires_grad=False))
