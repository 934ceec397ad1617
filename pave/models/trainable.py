"""Which parts a model has, which of them train, and the tensors of the base that are not as published."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pave.config import BaseConfig, Config
from pave.media import feature_files
from pave.models.distillation_head import DistillationHead
from pave.models.state_dicts import check_same
from pave.types import UserError
from pave.utils import distributed
from pave.utils.registry import nearest

if TYPE_CHECKING:
    from pave.models.patched_model import PatchedModel

BASE_FILE = "base.safetensors"
"""The base's tensors that are not as published, under their names inside the base."""
LLM, DISTILLATION_HEAD = "llm", "distillation_head"
SHORT = {"vision tower": "tower", "newline": "projector"}
"""What settings call a part, where not as tables do; the distillation head is there where a teacher is."""
OLD_HEAD_PREFIX = "lesson."
"""Of the distillation head's tensors in folders written before 0.1."""
PARTS = {
    "vision_tower": "vision tower",
    "multi_modal_projector": "projector",
    "image_newline": "newline",
    DISTILLATION_HEAD: DISTILLATION_HEAD,
}
"""By a piece of a parameter's name."""


def base_part(name: str) -> str:
    """The part of a base that a tensor belongs to: tower, projector, distillation head or llm."""
    found = next((PARTS[piece] for piece in name.split(".") if piece in PARTS), LLM)
    return SHORT.get(found, found)


def is_modified(base: BaseConfig) -> bool:
    """Whether a base is not as published."""
    return bool(base.trainable or base.init_from)


def make_trainable(model: PatchedModel, config: Config) -> None:
    """Go on from `base.init_from`, and let the parts of `base.trainable` train, but not what never does.

    Raises UserError for an unknown part, settings that exclude it, a folder that does not fit.
    """
    base = config.base
    prepare(model, config)
    known = list(dict.fromkeys(base_part(name) for name, _ in model.base.named_parameters()))
    for part in base.trainable:
        if part not in known:
            raise UserError(f"base.trainable: no part '{part}'; {nearest(part, known)}")
    if config.distill_from and not base.trainable:
        raise UserError("teacher: nothing learns from it; set base.trainable=[tower,projector]")
    if base.trainable and (base.dtype != "float32" or base.quantize != "none"):
        raise UserError(
            "base.trainable: weights that learn are kept whole; set base.dtype=float32 base.quantize=none (train.bf16 "
            "does the work in few bits)"
        )
    if LLM in base.trainable and config.lora.r:
        raise UserError("base.trainable: the LLM learns itself or through LoRA; set lora.r=0, or leave out llm")
    if config.data.video_tokens and {*base.trainable} - {LLM}:
        raise UserError(
            "base.trainable: stored video tokens are what the tower saw before; leave data.video_tokens empty"
        )
    if base.init_from:
        load_modified(model, Path(base.init_from) / BASE_FILE)
    untrainable = re.compile(model.base.untrainable)
    parts = (*base.trainable, DISTILLATION_HEAD)
    learning = [n for n in state_names(model.base) if base_part(n) in parts and not untrainable.fullmatch(n)]
    for name, parameter in model.base.named_parameters():
        if name in learning:
            parameter.requires_grad_(True)
    model.modified_base_tensors |= {*learning}


def state_names(base: nn.Module) -> list[str]:
    """What a base would store, buffers too; tied tensors once."""
    tensors = dict(base.named_parameters()) | dict(base.named_buffers())
    return [name for name in base.state_dict() if name in tensors]


def modified_state(model: PatchedModel) -> dict[str, Tensor]:
    """The tensors of the base that are not as published."""
    tensors = dict(model.base.named_parameters()) | dict(model.base.named_buffers())
    return {name: tensors[name].detach() for name in sorted(model.modified_base_tensors)}


@torch.no_grad()
def load_modified(model: PatchedModel, file: Path) -> None:
    """Replace tensors of the base by those of a file. Raises UserError for one the base does not have, or of its shape.

    They may be few: a stage learns some parts only. A distillation head is left out where there is no teacher any more.
    """
    given: Mapping[str, Tensor] = {
        re.sub(rf"^{re.escape(OLD_HEAD_PREFIX)}", f"{DISTILLATION_HEAD}.", name): tensor
        for name, tensor in feature_files.read_safetensors(file).state.items()
    }
    if model.base.distillation_head is None:
        given = {name: tensor for name, tensor in given.items() if base_part(name) != DISTILLATION_HEAD}
    mine = {name: x for name, x in model.base.state_dict(keep_vars=True).items() if name in given}
    with distributed.writable(mine):
        check_same({n: tuple(x.shape) for n, x in mine.items()}, {n: tuple(x.shape) for n, x in given.items()}, file)
        for name, tensor in mine.items():
            tensor.copy_(given[name])
    model.modified_base_tensors |= {*given}


def describe_parts(model: PatchedModel) -> str:
    """The table of what is frozen and what trains."""
    parts: dict[str, tuple[int, int]] = {}
    for name, parameter in model.named_parameters():
        part = part_of(name)
        trained, frozen = parts.get(part, (0, 0))
        n = parameter.numel()
        parts[part] = (trained + n, frozen) if parameter.requires_grad else (trained, frozen + n)
    rows = [f"{'part':<24}{'trained':>14}{'frozen':>16}"]
    rows += [f"{part:<24}{trained:>14,}{frozen:>16,}" for part, (trained, frozen) in parts.items()]
    total = [sum(column) for column in zip(*parts.values())]
    return "\n".join([*rows, f"{'total':<24}{total[0]:>14,}{total[1]:>16,}"])


def part_of(name: str) -> str:
    """Which part of the model a parameter belongs to."""
    pieces = name.split(".")
    if pieces[0] == "patches":
        return f"patch {pieces[1]}"
    if "lora_A" in pieces or "lora_B" in pieces:
        return "LoRA"
    return next((PARTS[piece] for piece in pieces if piece in PARTS), "LLM")


def outermost_modules(base: nn.Module, part: str) -> Iterator[nn.Module]:
    """The outermost modules of a part of a base."""
    for name, module in base.named_modules():
        if part_of(name) == part != part_of(name.rpartition(".")[0]):
            yield module


@contextmanager
def without_autograd(module: nn.Module) -> Iterator[None]:
    """Calls of a module are not recorded; what runs around them is."""
    modes: list[bool] = []

    def stop(*_: object) -> None:
        modes.append(torch.is_grad_enabled())
        torch.set_grad_enabled(False)

    def go_on(*_: object) -> None:
        torch.set_grad_enabled(modes.pop())

    hooks = [module.register_forward_pre_hook(stop), module.register_forward_hook(go_on, always_call=True)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def trained_parameters(model: PatchedModel) -> dict[str, list[nn.Parameter]]:
    """What trains, by part."""
    parts: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parts.setdefault(part_of(name), []).append(parameter)
    return parts


def prepare(model: PatchedModel, config: Config) -> None:
    """Give the base a distillation head, where the config names a teacher. Raises UserError for a base without such stages."""
    if not config.distill_from:
        return
    base = model.base
    if base.token_pixels is None:
        raise UserError(f"teacher: {config.base.name} has no such stage, video_panda has; leave it empty")
    device = next(base.parameters()).device
    head = DistillationHead(base.hf.config.num_hidden_layers, base.embed_dim, base.query_dim)
    base.distillation_head = head.to(device)
