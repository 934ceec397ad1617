"""The parts of a model, by the names of its parameters: what is frozen and what trains."""

from __future__ import annotations

from torch import nn

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


def trained(model: Pave) -> dict[str, list[nn.Parameter]]:
    """What trains, by part."""
    parts: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parts.setdefault(part_of(name), []).append(parameter)
    return parts
