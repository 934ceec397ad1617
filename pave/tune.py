"""Parts of the base that learn too, as the recipes of whole models have it; a patch needs none of this."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from pave import distill, ranks
from pave.config import BaseConfig, Config
from pave.io import store
from pave.lora import check_same
from pave.model import Pave
from pave.parts import PARTS
from pave.plug import nearest
from pave.types import UserError

FILE = "base.safetensors"
"""The base's tensors that are not as published, under their names inside the base."""
LLM, LESSON = "llm", "lesson"
SHORT = {"vision tower": "tower", "newline": "projector"}
"""What settings call a part, where not as tables do; the lesson is there where a teacher is."""


def part_of(name: str) -> str:
    """The part of a base that a tensor belongs to: tower, projector, lesson or llm."""
    found = next((PARTS[piece] for piece in name.split(".") if piece in PARTS), LLM)
    return SHORT.get(found, found)


def is_tuned(base: BaseConfig) -> bool:
    """Whether a base is not as published."""
    return bool(base.learn or base.init)


def start(model: Pave, config: Config) -> None:
    """Go on from `base.init`, and let the parts of `base.learn` learn, but what the base itself says never does.

    Raises UserError for an unknown part, settings that exclude it, a folder that does not fit.
    """
    base = config.base
    distill.prepare(model, config)
    known = list(dict.fromkeys(part_of(name) for name, _ in model.base.named_parameters()))
    for part in base.learn:
        if part not in known:
            raise UserError(f"base.learn: no part '{part}'; {nearest(part, known)}")
    if config.teacher and not base.learn:
        raise UserError("teacher: nothing learns from it; set base.learn=[tower,projector]")
    if base.learn and (base.dtype != "float32" or base.quantize != "none"):
        raise UserError(
            "base.learn: weights that learn are kept whole; set base.dtype=float32 base.quantize=none (train.bf16 does "
            "the work in few bits)"
        )
    if LLM in base.learn and config.lora.r:
        raise UserError("base.learn: the LLM learns itself or through LoRA; set lora.r=0, or leave out llm")
    if config.data.video_tokens and {*base.learn} - {LLM}:
        raise UserError("base.learn: stored video tokens are what the tower saw before; leave data.video_tokens empty")
    if base.init:
        fill(model, Path(base.init) / FILE)
    rests = re.compile(getattr(model.base, "rests", r"(?!)"))
    parts = (*base.learn, LESSON)
    learning = [n for n in state_names(model.base) if part_of(n) in parts and not rests.fullmatch(n)]
    for name, parameter in model.base.named_parameters():
        if name in learning:
            parameter.requires_grad_(True)
    model.tuned |= {*learning}


def state_names(base: nn.Module) -> list[str]:
    """What a base would store, buffers too; tied tensors once."""
    tensors = dict(base.named_parameters()) | dict(base.named_buffers())
    return [name for name in base.state_dict() if name in tensors]


def state(model: Pave) -> dict[str, Tensor]:
    """The tensors of the base that are not as published."""
    tensors = dict(model.base.named_parameters()) | dict(model.base.named_buffers())
    return {name: tensors[name].detach() for name in sorted(model.tuned)}


@torch.no_grad()
def fill(model: Pave, file: Path) -> None:
    """Replace tensors of the base by those of a file. Raises UserError for one the base does not have, or of its shape.

    They may be few: a stage learns some parts only. A lesson is left out where there is no teacher any more.
    """
    given: Mapping[str, Tensor] = store.read_safetensors(file).state
    if not hasattr(model.base, LESSON):
        given = {name: tensor for name, tensor in given.items() if part_of(name) != LESSON}
    mine = {name: x for name, x in model.base.state_dict(keep_vars=True).items() if name in given}
    with ranks.writable(mine):
        check_same({n: tuple(x.shape) for n, x in mine.items()}, {n: tuple(x.shape) for n, x in given.items()}, file)
        for name, tensor in mine.items():
            tensor.copy_(given[name])
    model.tuned |= {*given}
