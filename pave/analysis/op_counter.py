"""What the parts of a model cost as they run: operations, bytes alive, bytes kept; on meta nothing is computed.

Letters as in pave.types.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary
from transformers import DynamicCache

from pave.models.patched_model import Pave
from pave.models.trainable import roots
from pave.types import UserError, VideoTokens

PICTURE = (480, 640)
"""Rows and columns of a video, for bases that do not bring it to a size of their own."""


@dataclass
class Work:
    """What was counted."""

    flops: int = 0
    """A multiply-add is two; matrix products, convolutions and attention in full, nothing else."""
    peak: int = 0
    """Bytes that new tensors held at most."""
    kept: int = 0
    """Bytes kept for the backward pass."""


class Shape(NamedTuple):
    """Size of a side-channel."""

    steps: int
    per_step: int


@contextmanager
def measure(weights: nn.Module) -> Iterator[Work]:
    """Count what runs inside; the weights are no activations. Attention gives the right shapes, but no numbers."""
    work = Work()
    known = WeakIdKeyDictionary({x.untyped_storage(): 0 for x in (*weights.parameters(), *weights.buffers())})
    kept = WeakIdKeyDictionary(known)

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage not in kept:
            kept[storage] = 0
            work.kept += storage.nbytes()
        return x

    with _Fused(work), _Counter(work, known), saved_tensors_hooks(keep, lambda x: x):
        yield work


class _Counter(TorchDispatchMode):
    """Adds up the work of torch's operations, and how many bytes the tensors made here hold; views hold none."""

    def __init__(self, work: Work, known: WeakIdKeyDictionary) -> None:
        super().__init__()
        self.work, self.known, self.now = work, known, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for x in tree_leaves((args, kwargs)):
            if isinstance(x, Tensor):
                self.known.setdefault(x.untyped_storage(), 0)
        args, kwargs = _together(args, kwargs)
        out = func(*args, **kwargs)
        if func.overloadpacket in flop_registry:
            self.work.flops += flop_registry[func.overloadpacket](*args, **kwargs, out_val=out)
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and (storage := x.untyped_storage()) not in self.known:
                self.known[storage] = 0
                self._grow(storage.nbytes())
                weakref.finalize(storage, self._grow, -storage.nbytes())
        return out

    def _grow(self, size: int) -> None:
        self.now += size
        self.work.peak = max(self.work.peak, self.now)


def _together(args: Any, kwargs: Any) -> Any:
    """Arguments with numbers among shapes made shapes too."""
    if not any(isinstance(x, Tensor) and x.is_meta for x in tree_leaves((args, kwargs))):
        return args, kwargs
    return tree_map(lambda x: x.to("meta") if isinstance(x, Tensor) and x.ndim else x, (args, kwargs))


class _Fused(TorchFunctionMode):
    """Attention as fused kernels do it: both products of all queries and keys are counted, no scores are stored.

    A tensor made of given numbers keeps them: towers plan their windows by the size of the pictures.
    """

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.work = work

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor and str(kwargs.get("device")) == "meta":
            kwargs = {**kwargs, "device": None}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key, value = args
        self.work.flops += 2 * query[..., 0].numel() * key.shape[-2] * (key.shape[-1] + value.shape[-1])
        return _Attention.apply(query, key, value)


class _Attention(Function):
    """Keeps what a fused kernel keeps for the backward pass: inputs, output and the logarithms of the scores' sums."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """float[..., L, d] three times -> float[..., L, d], not filled"""
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out


def look(model: Pave, frames: int, size: tuple[int, int] = PICTURE) -> tuple[Work, int, VideoTokens]:
    """A skeleton's tower and projector look at a video: their work, how much of it is the projector's, the tokens.

    Raises UserError for a tower that decides by values what to do: a skeleton has none.
    """
    base = model.base
    pixels = torch.empty_like(base.preprocess(np.zeros((frames, *size, 3), np.uint8))[None], device="meta")
    projectors = [*roots(base, "projector")]
    spent = []
    with torch.no_grad(), measure(model) as work:
        hooks = [m.register_forward_pre_hook(lambda *_: spent.append(-work.flops)) for m in projectors]
        hooks += [m.register_forward_hook(lambda *_: spent.append(work.flops)) for m in projectors]
        try:
            guides = [torch.zeros(1, 1, dtype=torch.long, device="meta")] if getattr(base, "by_question", False) else []
            tokens = base.encode(pixels, *guides)
        except RuntimeError as error:
            name, why = type(base).__name__, str(error).splitlines()[0]
            raise UserError(f"{name}: this tower cannot run on shapes alone ({why}), so its work is unknown") from error
    for hook in hooks:
        hook.remove()
    return work, sum(spent), tokens


def update(model: Pave, name: str, query: Tensor, shape: Shape, dim: int) -> Work:
    """A skeleton's patch runs on a side-channel of this size; what is kept counts only where gradients are on."""
    side = torch.empty(1, *shape, dim, device="meta")
    # Time stamps decide windows of seconds, and no others: a step a second.
    seconds, frame_seconds = torch.arange(shape.steps), torch.linspace(0, shape.steps - 1, query.shape[1])
    with measure(model) as work:
        model.patches[name](query, side, seconds=[seconds], frame_seconds=[frame_seconds])
    return work


def read(model: Pave, length: int, cache: DynamicCache) -> Work:
    """A skeleton's LLM reads so many tokens after those in the cache, which grows, and says what comes next."""
    embeds = torch.empty(1, length, model.base.embed_dim, dtype=model.base.hf.dtype, device="meta")
    with torch.no_grad(), measure(model) as work:
        hidden = model.base.lm(inputs_embeds=embeds, past_key_values=cache, use_cache=True).last_hidden_state
        model.base.head(hidden[:, -1:])
    return work


def learn(model: Pave, length: int, checkpointing: bool) -> Work:
    """A training step's way through a skeleton's LLM; gradients reach the patches through it."""
    if checkpointing and hasattr(model.base.hf, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable()
    elif checkpointing:  # older transformers
        model.gradient_checkpointing_enable({"use_reentrant": False})
    needed = any(x.requires_grad for x in model.patches.parameters())
    embeds = torch.empty(
        1, length, model.base.embed_dim, dtype=model.base.hf.dtype, device="meta", requires_grad=needed
    )
    # Four dimensions: transformers takes such a mask as it is; of others it would read the values.
    mask = torch.empty(1, 1, length, length, dtype=torch.bool, device="meta")
    model.train()
    with measure(model) as work:
        model.base.lm(inputs_embeds=embeds, attention_mask=mask, use_cache=False)
    model.eval()
    return work
