"""The parts of a model, by the names of its parameters: what is frozen and what trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from pave.model import Pave


def describe(model: Pave) -> str:
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


PARTS = {
    "vision_tower": "vision tower",
    "multi_modal_projector": "projector",
    "image_newline": "newline",
    "lesson": "lesson",
}
"""By a piece of a parameter's name."""


def part_of(name: str) -> str:
    """Which part of the model a parameter belongs to."""
    pieces = name.split(".")
    if pieces[0] == "patches":
        return f"patch {pieces[1]}"
    if "lora_A" in pieces or "lora_B" in pieces:
        return "LoRA"
    return next((PARTS[piece] for piece in pieces if piece in PARTS), "LLM")


def roots(base: nn.Module, part: str) -> Iterator[nn.Module]:
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


def trained(model: Pave) -> dict[str, list[nn.Parameter]]:
    """What trains, by part."""
    parts: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parts.setdefault(part_of(name), []).append(parameter)
    return parts
