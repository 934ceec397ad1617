"""A language model in other coordinates: it answers as before, but what was made for the old ones no longer fits."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


@torch.no_grad()
def turn(base: Any, last: nn.Linear, seed: int = 0) -> None:
    """Turn the residual stream of a Llama or Qwen2 with an untied head, and visual tokens out of `last`, at random.

    Norms do not notice a turn, once their weights are in the maps that read them.
    """
    width = base.embed_dim
    way = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(seed)))[0]
    reads = [(base.lm.norm, [base.head])]
    writes = [last]
    for layer in base.lm.layers:
        look, think = layer.self_attn, layer.mlp
        reads.append((layer.input_layernorm, [look.q_proj, look.k_proj, look.v_proj]))
        reads.append((layer.post_attention_layernorm, [think.gate_proj, think.up_proj]))
        writes += [look.o_proj, think.down_proj]
    for norm, readers in reads:
        for reader in readers:
            reader.weight.copy_(reader.weight * norm.weight @ way)
        norm.weight.fill_(1)
    for writer in writes:
        writer.weight.copy_(way.T @ writer.weight)
        if writer.bias is not None:
            writer.bias.copy_(way.T @ writer.bias)
    words = base.hf.get_input_embeddings().weight
    words.copy_(words @ way)
