"""Check how the processes of a training were started."""

from __future__ import annotations

import os

from pave.config import Config
from pave.types import UserError


def check_launcher(config: Config) -> None:
    """Raises UserError for settings that need a launcher where there is none, or that exclude each other."""
    if config.base.quantize == "int8" and config.train.get("fsdp"):
        raise UserError("base.quantize=int8: FSDP2 cannot split such weights; use nf4, or train.deepspeed")
    for name in ("deepspeed", "fsdp"):
        if config.train.get(name) and "RANK" not in os.environ:
            raise UserError(f"train.{name}: needs torchrun, for one process too: PROCESSES=1 bash scripts/train.sh ...")


def sides_differ_across_ranks(config: Config) -> bool:
    """Whether the batch of one rank may lack a side-channel that the batch of another rank has."""
    return bool(config.data.mixture) or config.data.missing == "absent"
