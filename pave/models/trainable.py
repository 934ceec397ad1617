"""The parts of a model: which there are, which of them train, and which tensors of the base are not as published."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pave.config import BaseConfig, Config
from pave.media import feature_files
from pave.models.distillation_head import DistillationHead
from pave.models.state_dicts import check_same, shapes
from pave.types import UserError
from pave.utils import distributed
from pave.utils.registry import nearest

if TYPE_CHECKING:
    from pave.models.base import Base
    from pave.models.patched_model import PatchedModel

BASE_FILE = "base.safetensors"
"""The base's tensors that are not as published, under their names inside the base."""
STORED_HEAD = "lesson"
"""What a file calls the distillation head, as in the first folders that had one."""
LLM, LORA, HEAD = "LLM", "LoRA", "distillation head"
PARTS = {
    "vision_tower": "vision tower",
    "multi_modal_projector": "projector",
    "image_newline": "newline",
    "distillation_head": HEAD,
    STORED_HEAD: HEAD,
}
"""Part of the base by a piece of a parameter's name; all others are the LLM's."""
SETTINGS = {"vision tower": "tower", "projector": "projector", "newline": "projector", LLM: "llm"}
"""What `base.trainable` calls a part; patches, LoRA and the distillation head have settings of their own."""


def part_of(name: str) -> str:
    """The part that a parameter of a model or of a base belongs to, as tables show it."""
    pieces = name.split(".")
    if pieces[0] == "patches":
        return f"patch {pieces[1]}"
    if "lora_A" in pieces or "lora_B" in pieces:
        return LORA
    return next((PARTS[piece] for piece in pieces if piece in PARTS), LLM)


def setting_of(name: str) -> str | None:
    """What `base.trainable` calls the part of a parameter; None for LoRA, patches and the distillation head."""
    return SETTINGS.get(part_of(name))


def outermost_modules(base: nn.Module, part: str) -> Iterator[nn.Module]:
    """Yield the modules that hold a part of a base, without those inside them."""
    for name, module in base.named_modules():
        parent = name.rpartition(".")[0]
        if part_of(name) == part != part_of(parent):
            yield module


def trained_parameters(model: PatchedModel) -> dict[str, list[nn.Parameter]]:
    """The parameters that train, by part."""
    parts: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parts.setdefault(part_of(name), []).append(parameter)
    return parts


def describe_parts(model: PatchedModel) -> str:
    """A table of the parts: how many parameters train, and how many are frozen."""
    trained: dict[str, int] = {}
    frozen: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        part, count = part_of(name), parameter.numel()
        trained[part] = trained.get(part, 0) + count * parameter.requires_grad
        frozen[part] = frozen.get(part, 0) + count * (not parameter.requires_grad)

    rows = [f"{'part':<24}{'trained':>14}{'frozen':>16}"]
    rows += [f"{part:<24}{trained[part]:>14,}{frozen[part]:>16,}" for part in trained]
    return "\n".join([*rows, f"{'total':<24}{sum(trained.values()):>14,}{sum(frozen.values()):>16,}"])


def is_modified(base: BaseConfig) -> bool:
    """Whether a base is not as published."""
    return bool(base.trainable or base.init_from)


def make_trainable(model: PatchedModel, config: Config) -> None:
    """Load `base.init_from`, and let the parts of `base.trainable` train, except for the base's `untrainable` tensors.

    With a teacher the base gets a distillation head. Raises UserError for an unknown part, settings that exclude each
    other, a folder that does not fit.
    """
    base = model.base
    if config.distill_from:
        _add_distillation_head(base, config.base.name)
    _check_settings(config, [setting_of(name) for name, _ in base.named_parameters()])
    if config.base.init_from:
        load_modified(model, Path(config.base.init_from) / BASE_FILE)

    untrainable = re.compile(base.untrainable)
    for name, tensor in _stored_tensors(base).items():
        trains = setting_of(name) in config.base.trainable or part_of(name) == HEAD
        if trains and not untrainable.fullmatch(name):
            model.modified_base_tensors.add(name)
            if isinstance(tensor, nn.Parameter):
                tensor.requires_grad_(True)


def _add_distillation_head(base: Base, name: str) -> None:
    """Give a base its distillation head. Raises UserError for a base that no teacher can train."""
    if base.token_pixels is None:
        raise UserError(f"distill_from: {name} has no such stage, video_panda has; leave it empty")
    device = next(base.parameters()).device
    head = DistillationHead(base.hf.config.num_hidden_layers, base.embed_dim, base.query_dim)
    base.distillation_head = head.to(device)


def _check_settings(config: Config, parts: list[str | None]) -> None:
    """Raises UserError for a part that is not among those of the base, or settings that exclude it."""
    base, names = config.base, list(dict.fromkeys(part for part in parts if part))
    for part in base.trainable:
        if part not in names:
            raise UserError(f"base.trainable: no part '{part}'; {nearest(part, names)}")

    if config.distill_from and not base.trainable:
        raise UserError("distill_from: no part of the base trains; set base.trainable=[tower,projector]")
    if base.trainable and (base.dtype != "float32" or base.quantize != "none"):
        raise UserError(
            "base.trainable: weights that train are kept in full precision; set base.dtype=float32 base.quantize=none "
            "(train.bf16 computes in bfloat16)"
        )
    if SETTINGS[LLM] in base.trainable and config.lora.r:
        raise UserError("base.trainable: the LLM trains itself or through LoRA; set lora.r=0, or leave out llm")
    if config.data.video_tokens and {*base.trainable} - {SETTINGS[LLM]}:
        raise UserError(
            "base.trainable: stored video tokens come from the tower before it trains; leave data.video_tokens empty"
        )


def _stored_tensors(base: nn.Module) -> dict[str, Tensor]:
    """The tensors that a state dict of a base holds, buffers too; tied tensors once."""
    tensors: dict[str, Tensor] = {**dict(base.named_parameters()), **dict(base.named_buffers())}
    return {name: tensors[name] for name in base.state_dict() if name in tensors}


def modified_state(model: PatchedModel) -> dict[str, Tensor]:
    """The tensors of the base that are not as published, under their names in a file."""
    tensors = _stored_tensors(model.base)
    return {_stored_name(name): tensors[name].detach() for name in sorted(model.modified_base_tensors)}


def _stored_name(name: str) -> str:
    return re.sub(r"^distillation_head\.", f"{STORED_HEAD}.", name)


@torch.no_grad()
def load_modified(model: PatchedModel, file: Path) -> None:
    """Replace tensors of the base by those of a file, which may be few: a stage trains some parts only.

    A distillation head is left out where there is no teacher any more. Raises UserError for a tensor that the base
    does not have, or not in this shape.
    """
    state = feature_files.read_safetensors(file).state
    if model.base.distillation_head is None:
        state = {name: tensor for name, tensor in state.items() if not name.startswith(f"{STORED_HEAD}.")}

    own_names = {_stored_name(name): name for name in model.base.state_dict()}
    own_state = model.base.state_dict(keep_vars=True)
    targets = {name: own_state[own_names[name]] for name in state if name in own_names}
    with distributed.gathered_for_writing(targets):
        check_same(shapes(targets), shapes(state), file)
        for name, tensor in targets.items():
            tensor.copy_(state[name])
    model.modified_base_tensors |= {own_names[name] for name in state}


@contextmanager
def without_autograd(module: nn.Module) -> Iterator[None]:
    """Run calls of a module without autograd while the context lasts; all around them is recorded as usual."""
    modes: list[bool] = []

    def disable(*_: object) -> None:
        modes.append(torch.is_grad_enabled())
        torch.set_grad_enabled(False)

    def restore(*_: object) -> None:
        torch.set_grad_enabled(modes.pop())

    hooks = [module.register_forward_pre_hook(disable), module.register_forward_hook(restore, always_call=True)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
