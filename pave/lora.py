"""What trains: LoRA on the LLM's projections and the patches. The only file that knows peft's adapters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import peft
from torch import Tensor, nn

from pave.config import LoraConfig
from pave.types import UserError

PREFIX = "base_model.model."
"""Of every key in a plain peft folder."""


def freeze(model: nn.Module) -> None:
    """Freeze every parameter."""
    model.requires_grad_(False)


def inject(hf: nn.Module, targets: str, config: LoraConfig) -> None:
    """Put fresh LoRA layers into the modules whose full names match `targets`; they alone train. No-op for r = 0."""
    if config.r == 0:
        return
    peft.inject_adapter_in_model(_peft_config(targets, config), hf)
    for name, parameter in hf.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()


def _peft_config(targets: str, config: LoraConfig) -> peft.LoraConfig:
    return peft.LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )


def state(hf: nn.Module) -> dict[str, Tensor]:
    """The adapter's tensors under the names of a plain peft folder; empty without LoRA."""
    return {PREFIX + name: x for name, x in _raw_state(hf).items()}


def _raw_state(hf: nn.Module) -> dict[str, Tensor]:
    if not has_lora(hf):
        return {}
    return peft.get_peft_model_state_dict(hf, adapter_name="default")


def has_lora(hf: nn.Module) -> bool:
    """Whether LoRA layers were injected."""
    return any(isinstance(m, peft.tuners.lora.LoraLayer) for m in hf.modules())


def load_state(hf: nn.Module, tensors: dict[str, Tensor], origin: Path) -> None:
    """Fill injected LoRA layers. Raises UserError naming the first missing, extra or misshapen tensor."""
    have = {name: x.shape for name, x in _raw_state(hf).items()}
    given = {name.removeprefix(PREFIX): x for name, x in tensors.items()}
    check_same(have, {name: x.shape for name, x in given.items()}, origin)
    peft.set_peft_model_state_dict(hf, given, adapter_name="default")


def check_same(wanted: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]], origin: Path) -> None:
    """Two tables of shapes must agree. Raises UserError with the first name that is missing, extra or misshapen."""
    for problem, names in (
        ("is missing", wanted.keys() - given.keys()),
        ("is not known", given.keys() - wanted.keys()),
    ):
        if names:
            raise UserError(f"{origin}: tensor '{min(names)}' {problem} ({len(names)} such); is this the right base?")
    for name, shape in sorted(wanted.items()):
        if tuple(given[name]) != tuple(shape):
            found, expected = tuple(given[name]), tuple(shape)
            raise UserError(f"{origin}: tensor '{name}' has shape {found}, expected {expected}: another base?")


def write_settings(targets: str, config: LoraConfig, base: str, folder: Path) -> None:
    """Write adapter_config.json, so that the folder loads with plain peft on the HF base."""
    settings = _peft_config(targets, config)
    settings.base_model_name_or_path = base
    settings.save_pretrained(str(folder))


def merge(hf: nn.Module) -> None:
    """Add LoRA into the weights for good: same answers, faster inference."""
    for module in hf.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            module.merge()
