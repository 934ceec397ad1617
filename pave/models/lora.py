"""LoRA on the LLM's projections: named adapters in one set of layers. The only file that knows peft's adapters."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from pave.config import LoraConfig
from pave.models.state_dicts import check_same, shapes
from pave.types import UserError

PREFIX = "base_model.model."
"""Of every key in a plain peft folder."""
DEFAULT = "default"
"""The adapter of the folder that a model was made from."""


def freeze(model: nn.Module) -> None:
    """Freeze every parameter."""
    model.requires_grad_(False)


def inject(hf: nn.Module, targets: str, config: LoraConfig, name: str = DEFAULT, weights: bool = True) -> None:
    """Put an adapter into the modules whose full names match `targets`; no other parameter changes. No-op for r = 0.

    Without weights its tensors are on the meta device until `load_state`. Raises UserError if LoRA was merged.
    """
    if config.r == 0:
        return
    check_not_merged(hf)
    before = {parameter: parameter.requires_grad for parameter in hf.parameters()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        peft.inject_adapter_in_model(_peft_config(targets, config), hf, name, low_cpu_mem_usage=not weights)
    for parameter, trains in before.items():
        parameter.requires_grad_(trains)
    for tensor in _tensors(hf, name).values():
        tensor.data = tensor.data.float()
        tensor.requires_grad_(config.trainable)


def _peft_config(targets: str, config: LoraConfig) -> peft.LoraConfig:
    return peft.LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )


def names(hf: nn.Module) -> list[str]:
    """The adapters of a model, in the order they came."""
    return list(dict.fromkeys(name for _, layer in _layers(hf) for name in layer.lora_A))


def has_lora(hf: nn.Module) -> bool:
    """Whether there is any adapter."""
    return bool(names(hf))


def _layers(hf: nn.Module) -> list[tuple[str, LoraLayer]]:
    return [(name, module) for name, module in hf.named_modules() if isinstance(module, LoraLayer)]


def _tensors(hf: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """An adapter's parameters under the names of a plain peft folder."""
    return {
        f"{PREFIX}{module}.{part}.weight": getattr(layer, part)[name].weight
        for module, layer in _layers(hf)
        for part in ("lora_A", "lora_B")
        if name in layer.lora_A
    }


def state(hf: nn.Module, name: str = DEFAULT) -> dict[str, Tensor]:
    """An adapter's tensors under the names of a plain peft folder; empty if there is none of that name."""
    return {key: tensor.detach() for key, tensor in _tensors(hf, name).items()}


def load_state(hf: nn.Module, tensors: Mapping[str, Tensor], origin: Path, name: str = DEFAULT) -> None:
    """Fill an adapter. Raises UserError naming the first missing, extra or misshapen tensor."""
    mine = _tensors(hf, name)
    check_same({key: tuple(x.shape) for key, x in mine.items()}, shapes(tensors), origin)
    for module, layer in _layers(hf):
        for part in ("lora_A", "lora_B"):
            if name in layer.lora_A:
                linear = getattr(layer, part)[name]
                given = tensors[f"{PREFIX}{module}.{part}.weight"].to(
                    layer.get_base_layer().weight.device, torch.float32
                )
                if linear.weight.is_meta:
                    linear.weight = nn.Parameter(given, requires_grad=linear.weight.requires_grad)
                else:
                    linear.weight.data.copy_(given)


def check_fits(hf: Any, targets: str, rank: int, tensors: Mapping[str, Tensor], origin: Path) -> None:
    """Whether tensors are an adapter for a model; nothing changes. Raises UserError naming the first that differs."""
    wanted: dict[str, tuple[int, ...]] = {}
    for name, module in hf.named_modules():
        if re.fullmatch(targets, name):
            # Not the weight's shape: it may be packed (4 bits) or elsewhere (ZeRO-3).
            wanted[f"{PREFIX}{name}.lora_A.weight"] = (rank, module.in_features)
            wanted[f"{PREFIX}{name}.lora_B.weight"] = (module.out_features, rank)
    check_same(wanted, shapes(tensors), origin)


def set_weights(hf: nn.Module, weights: Mapping[str, float]) -> None:
    """Factor on each adapter; 0 switches it off at no cost. What trains stays. Raises UserError if LoRA was merged."""
    check_not_merged(hf)
    for _, layer in _layers(hf):
        for name, weight in weights.items():
            layer.set_scale(name, weight)
        _switch(layer, [name for name, weight in weights.items() if weight])


def _switch(layer: LoraLayer, active: list[str]) -> None:
    """Adapters that work from now on; peft would also change what trains."""
    before = {parameter: parameter.requires_grad for parameter in layer.parameters()}
    layer.set_adapter(active)
    for parameter, trains in before.items():
        parameter.requires_grad_(trains)


def remove(hf: Any, name: str) -> None:
    """Take an adapter out. Raises UserError if LoRA was merged."""
    check_not_merged(hf)
    for _, layer in _layers(hf):
        # Off first, else peft would switch another on in its place.
        _switch(layer, [other for other in layer.active_adapters if other != name])
        layer.delete_adapter(name)
    del hf.peft_config[name]


def settings(hf: Any, name: str) -> dict[str, Any]:
    """Those of an adapter's LoraConfig fields that shape it."""
    config = hf.peft_config[name]
    return {"r": config.r, "alpha": config.lora_alpha, "dropout": config.lora_dropout}


def write_settings(targets: str, config: LoraConfig, base: str, folder: Path) -> None:
    """Write adapter_config.json, so that the folder loads with plain peft on the HF base."""
    written = _peft_config(targets, config)
    written.base_model_name_or_path = base
    written.save_pretrained(str(folder))


def merge(hf: nn.Module) -> None:
    """Add LoRA into the weights for good: same answers, faster inference; no more switching."""
    for _, layer in _layers(hf):
        layer.merge()


def check_not_merged(hf: nn.Module) -> None:
    """Raises UserError if LoRA was merged into the weights."""
    if any(layer.merged for _, layer in _layers(hf)):
        raise UserError("LoRA was merged into this model's weights; load it again to switch, add or remove patches")
