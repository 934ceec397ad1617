"""Rotate the residual stream of a language model: it answers as before, but patches made for it no longer fit."""

from __future__ import annotations

import torch
from torch import nn

from pave.models.base import Base


@torch.no_grad()
def rotate_residual_stream(base: Base, projector_output: nn.Linear, seed: int = 0) -> None:
    """Rotate by a random matrix all that reads or writes the residual stream of a Llama or Qwen2 with an untied head.

    Norms do not notice a rotation, once their weights are moved into the maps that read them. `projector_output` is
    the layer that visual tokens come out of.
    """
    llm = base.hf.get_decoder()
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(base.embed_dim, base.embed_dim, generator=generator))[0]

    readers = [(llm.norm, [base.hf.get_output_embeddings()])]
    writers = [projector_output]
    for layer in llm.layers:
        attention, mlp = layer.self_attn, layer.mlp
        readers.append((layer.input_layernorm, [attention.q_proj, attention.k_proj, attention.v_proj]))
        readers.append((layer.post_attention_layernorm, [mlp.gate_proj, mlp.up_proj]))
        writers += [attention.o_proj, mlp.down_proj]

    for norm, linears in readers:
        for linear in linears:
            linear.weight.copy_(linear.weight * norm.weight @ rotation)
        norm.weight.fill_(1)
    for linear in writers:
        linear.weight.copy_(rotation.T @ linear.weight)
        if linear.bias is not None:
            linear.bias.copy_(rotation.T @ linear.bias)
    embeddings = base.hf.get_input_embeddings().weight
    embeddings.copy_(embeddings @ rotation)
