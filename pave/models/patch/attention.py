"""Windowed cross-attention: R windows at once, each with N queries and J slots for keys."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pave.models.patch.windows import WindowGather
from pave.types import UserError

Kernel = Literal["sdpa", "flash"]


def check_kernel(kernel: Kernel) -> None:
    """Raises UserError if the kernel's package is not installed."""
    if kernel == "flash" and find_spec("flash_attn") is None:
        raise UserError("kernel 'flash' needs the package flash-attn, which is not installed; use kernel=sdpa")


def attend(query: Tensor, key: Tensor, value: Tensor, gather: WindowGather, kernel: Kernel) -> Tensor:
    """Attend: query float[R,N,heads,d], key and value float[R,J,heads,d] -> float[R,N,heads*d]; zeros without a key."""
    if kernel == "flash":
        return _zero_empty(_flash(query, key, value, gather), gather)
    mask = None if gather.mask is None else gather.mask[:, None, None]
    out = F.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attn_mask=mask
    )
    return _zero_empty(out.transpose(1, 2).flatten(2), gather)


def _zero_empty(out: Tensor, gather: WindowGather) -> Tensor:
    return out if gather.empty is None else out.masked_fill(gather.empty[..., None], 0.0)


def _flash(query: Tensor, key: Tensor, value: Tensor, gather: WindowGather) -> Tensor:
    """The same through flash-attn's variable-length kernel: keys are packed, nothing is padded or masked."""
    from flash_attn import flash_attn_varlen_func

    rows, tokens, heads, dim = query.shape
    slots = key.shape[1]
    key, value = key.flatten(0, 1), value.flatten(0, 1)
    if gather.mask is not None:
        is_filled = torch.arange(slots) < gather.length[:, None]
        filled = is_filled.flatten().nonzero()[:, 0].to(key.device)
        key, value = key[filled], value[filled]

    key_bounds = F.pad(gather.length.cumsum(0), (1, 0)).int().to(query.device)
    query_bounds = torch.arange(rows + 1, device=query.device, dtype=torch.int32) * tokens
    out = flash_attn_varlen_func(query.flatten(0, 1), key, value, query_bounds, key_bounds, tokens, slots)
    return out.view(rows, tokens, heads * dim)


class QueryMap(nn.Linear):
    """The projection of the queries; where keys are few it can be folded into them, (W x + b)·k = x·(W'k) + b·k."""

    def forward(self, x: Tensor, key: Tensor | None = None) -> Tensor:
        """Project x float[R,N,H] -> float[R,N,H], or with key float[R,J,heads,d] the scores float[R,N,heads*J]."""
        if key is None:
            return super().forward(x)
        heads, dim = key.shape[2:]
        folded = torch.einsum("rjhd,hdc->rchj", key, self.weight.view(heads, dim, -1)).flatten(2)
        offset = torch.einsum("rjhd,hd->rhj", key, self.bias.view(heads, dim)).flatten(1)
        return torch.baddbmm(offset[:, None], x, folded)


def folding_pays(tokens: int, key: Tensor) -> bool:
    """Whether keys are few enough: folding projects J keys, not N queries, but widens the scores `heads` times."""
    return 4 * key.shape[1] <= min(tokens, key.shape[3])


def attend_folded(query_map: QueryMap, x: Tensor, key: Tensor, value: Tensor, gather: WindowGather) -> Tensor:
    """Compute attend(query_map(x), key, value), the map folded into the keys: x float[R,N,H] -> float[R,N,heads*d]."""
    rows, slots, heads, dim = key.shape
    scores = query_map(x, key * dim**-0.5).unflatten(2, (heads, slots))
    if gather.mask is not None:
        scores = scores.masked_fill(~gather.mask[:, None, None], -torch.inf)

    # Values of each head stand in that head's own columns, so that one product sums over heads and keys.
    eye = torch.eye(heads, dtype=value.dtype, device=value.device)
    by_head = torch.einsum("rjhd,hg->rhjgd", value, eye).reshape(rows, heads * slots, heads * dim)
    return _zero_empty(scores.softmax(-1).flatten(2) @ by_head, gather)
