"""The optimisation loop of all tiny models."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from tqdm import tqdm


def bfloat16_autocast() -> torch.autocast:
    """Multiply in bfloat16 where the processor has it; elsewhere it takes several times as long as float32."""
    # Older versions of torch cannot tell.
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    has_bfloat16 = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16)


def optimise(model: nn.Module, losses: Iterator[Tensor], steps: int, rate: float) -> None:
    """Minimise a stream of losses by AdamW with warm-up and cosine."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.05)

    bar = tqdm(range(steps), desc="pretrain", unit="step")
    for _ in bar:
        with bfloat16_autocast():
            loss = next(losses)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")
