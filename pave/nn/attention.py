"""Windowed cross-attention: one call over all windows of a batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pave.nn.window import Gather


def attend(query: Tensor, key: Tensor, value: Tensor, gather: Gather, kernel: str) -> Tensor:
    """query float[B,G,N,heads,d], key and value float[B,G,W,P,heads,d] -> float[B,G,N,heads*d].

    A window without keys gives zeros, so its frames keep only the residual.
    """
    if kernel == "flash":
        return _flash(query, key, value, gather)
    batch, groups, tokens = query.shape[:3]
    mask = None
    if gather.mask is not None:
        # An empty window may look at its first (meaningless) slot and is zeroed below: no kernel meets a row of -inf.
        seen = gather.mask if gather.empty is None else gather.mask | gather.empty[..., None]
        mask = seen.repeat_interleave(key.shape[3], dim=-1).flatten(0, 1)[:, None, None, :]
    heads_first = [t.flatten(2, -3).flatten(0, 1).transpose(1, 2) for t in (query, key, value)]
    out = F.scaled_dot_product_attention(*heads_first, attn_mask=mask)
    out = out.transpose(1, 2).reshape(batch, groups, tokens, -1)
    return out if gather.empty is None else out.masked_fill(gather.empty[..., None, None], 0.0)


def _flash(query: Tensor, key: Tensor, value: Tensor, gather: Gather) -> Tensor:
    """The same through flash-attn's variable-length kernel: keys are packed, nothing is padded or masked."""
    from flash_attn import flash_attn_varlen_func

    batch, groups, tokens, heads, dim = query.shape
    per_step = key.shape[3]
    if gather.mask is None:
        lengths = torch.full((batch * groups,), key.shape[2], device=query.device)
    else:
        lengths = gather.mask.sum(-1).flatten()
        key, value = key[gather.mask], value[gather.mask]
    bounds = F.pad((lengths * per_step).cumsum(0), (1, 0)).int()
    query_bounds = torch.arange(0, batch * groups + 1, device=query.device, dtype=torch.int32) * tokens
    out = flash_attn_varlen_func(
        query.reshape(-1, heads, dim),
        key.reshape(-1, heads, dim),
        value.reshape(-1, heads, dim),
        query_bounds,
        bounds,
        tokens,
        int(gather.shape[2] * per_step),
    )
    return out.reshape(batch, groups, tokens, heads * dim)
