"""LoRA on the LLM's projections: named adapters in one set of layers. The only file that imports peft."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, cast

import peft
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from pave.config import LoraConfig
from pave.models.state_dicts import check_same, shapes
from pave.types import UserError

PREFIX = "base_model.model."
"""Of every key in a plain peft folder."""
DEFAULT = "default"
"""The adapter of the folder that a model was made from."""


class _Factor(NamedTuple):
    """One of the two factors of an adapter in one layer."""

    linear: nn.Linear
    layer: LoraLayer
    """The layer that it belongs to."""


def inject(hf: PreTrainedModel, targets: str, config: LoraConfig, name: str = DEFAULT, weights: bool = True) -> None:
    """Put an adapter into the modules whose full names match `targets`; no other parameter changes. No-op for r = 0.

    Without weights its tensors are on the meta device until `load_state`. Raises UserError if LoRA was merged.
    """
    if config.r == 0:
        return
    check_not_merged(hf)
    trainable = {parameter: parameter.requires_grad for parameter in hf.parameters()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        peft.inject_adapter_in_model(_peft_config(targets, config), hf, name, low_cpu_mem_usage=not weights)
    # peft freezes all others, and may make the adapter in the dtype of the base.
    for parameter, requires_grad in trainable.items():
        parameter.requires_grad_(requires_grad)
    for factor in _factors(hf, name).values():
        factor.linear.weight.data = factor.linear.weight.data.float()
        factor.linear.weight.requires_grad_(config.trainable)


def _peft_config(targets: str, config: LoraConfig) -> peft.LoraConfig:
    return peft.LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )


def names(hf: PreTrainedModel) -> list[str]:
    """The names of a model's adapters, in the order in which they were added."""
    return list(dict.fromkeys(name for _, layer in _layers(hf) for name in layer.lora_A))


def _layers(hf: PreTrainedModel) -> list[tuple[str, LoraLayer]]:
    return [(name, module) for name, module in hf.named_modules() if isinstance(module, LoraLayer)]


def _factors(hf: PreTrainedModel, name: str) -> dict[str, _Factor]:
    """An adapter's factors under the names that their weights have in a plain peft folder."""
    factors: dict[str, _Factor] = {}
    for module, layer in _layers(hf):
        if name in layer.lora_A:
            factors[f"{PREFIX}{module}.lora_A.weight"] = _Factor(layer.lora_A[name], layer)
            factors[f"{PREFIX}{module}.lora_B.weight"] = _Factor(layer.lora_B[name], layer)
    return factors


def state(hf: PreTrainedModel, name: str = DEFAULT) -> dict[str, Tensor]:
    """An adapter's tensors under the names of a plain peft folder; empty if there is none of that name."""
    return {key: factor.linear.weight.detach() for key, factor in _factors(hf, name).items()}


def load_state(hf: PreTrainedModel, tensors: Mapping[str, Tensor], origin: Path, name: str = DEFAULT) -> None:
    """Fill an adapter. Raises UserError naming the first missing, extra or misshapen tensor."""
    check_same(shapes(state(hf, name)), shapes(tensors), origin)
    for key, (linear, layer) in _factors(hf, name).items():
        tensor = tensors[key].to(layer.get_base_layer().weight.device, torch.float32)
        if linear.weight.is_meta:
            linear.weight = nn.Parameter(tensor, requires_grad=linear.weight.requires_grad)
        else:
            linear.weight.data.copy_(tensor)


def check_fits(hf: PreTrainedModel, targets: str, rank: int, tensors: Mapping[str, Tensor], origin: Path) -> None:
    """Check that tensors are an adapter for a model, which stays as it is. Raises UserError as `load_state`."""
    expected: dict[str, tuple[int, ...]] = {}
    for name, module in hf.named_modules():
        if re.fullmatch(targets, name):
            # Not the weight's shape: it may be packed (4 bits) or elsewhere (ZeRO-3).
            linear = cast(nn.Linear, module)
            expected[f"{PREFIX}{name}.lora_A.weight"] = (rank, linear.in_features)
            expected[f"{PREFIX}{name}.lora_B.weight"] = (linear.out_features, rank)
    check_same(expected, shapes(tensors), origin)


def set_weights(hf: PreTrainedModel, weights: Mapping[str, float]) -> None:
    """Set the factor on each adapter; 0 switches it off at no cost. Raises UserError if LoRA was merged."""
    check_not_merged(hf)
    for _, layer in _layers(hf):
        for name, weight in weights.items():
            layer.set_scale(name, weight)
        _activate(layer, [name for name, weight in weights.items() if weight])


def _activate(layer: LoraLayer, names: list[str]) -> None:
    """Switch to these adapters, without peft's change of which parameters train."""
    trainable = {parameter: parameter.requires_grad for parameter in layer.parameters()}
    layer.set_adapter(names)
    for parameter, requires_grad in trainable.items():
        parameter.requires_grad_(requires_grad)


def remove(hf: PreTrainedModel, name: str) -> None:
    """Take an adapter out. Raises UserError if LoRA was merged."""
    check_not_merged(hf)
    for _, layer in _layers(hf):
        # Inactive first, else peft would activate another in its place.
        _activate(layer, [other for other in layer.active_adapters if other != name])
        layer.delete_adapter(name)
    del _peft_configs(hf)[name]


def _peft_configs(hf: PreTrainedModel) -> dict[str, peft.LoraConfig]:
    """The settings of each adapter, which peft keeps on the model."""
    return cast("dict[str, peft.LoraConfig]", hf.peft_config)


def effective_config(hf: PreTrainedModel, name: str, config: LoraConfig) -> LoraConfig:
    """A config with the rank, alpha and dropout that an adapter of the model has."""
    adapter = _peft_configs(hf)[name]
    return dataclasses.replace(config, r=adapter.r, alpha=adapter.lora_alpha, dropout=adapter.lora_dropout)


def write_settings(targets: str, config: LoraConfig, base: str, folder: Path) -> None:
    """Write adapter_config.json, so that the folder loads with plain peft on the HF base."""
    settings = _peft_config(targets, config)
    settings.base_model_name_or_path = base
    settings.save_pretrained(str(folder))


def merge(hf: PreTrainedModel) -> None:
    """Add LoRA to the weights for good: same answers, faster inference; nothing can be switched any more."""
    for _, layer in _layers(hf):
        layer.merge()


def check_not_merged(hf: PreTrainedModel) -> None:
    """Raises UserError if LoRA was merged into the weights."""
    if any(layer.merged for _, layer in _layers(hf)):
        raise UserError("LoRA was merged into this model's weights; load it again to switch, add or remove patches")
