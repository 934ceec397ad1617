"""What all lessons share: names of facts, seeds, and the training loop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from pave.sideworld import scene as world

SHAPES, COLORS, SOUNDS = list(world.SHAPES), list(world.COLORS), list(world.SOUNDS)
FIRST_SEED = 1 << 60
"""Far above the seeds of any clip that `pave prepare` writes."""


def fast() -> torch.autocast:
    """bfloat16 products where the processor has them; where it has not, they take several times as long as float32."""
    has: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older torch does not tell
    return torch.autocast("cpu", torch.bfloat16, enabled=bool(has.get("avx512_bf16") or has.get("amx_bf16")))


def fit(model: nn.Module, losses: Iterator[Tensor], steps: int, rate: float) -> None:
    """AdamW with warm-up and cosine on a stream of losses; fast products."""
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=0.01, betas=(0.9, 0.98)
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.05)
    bar = tqdm(range(steps), desc="pretrain", unit="step")
    for _ in bar:
        with fast():
            loss = next(losses)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")
