"""Counts operations, peak memory and saved activations of the parts of a model; on meta nothing is computed.

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

from pave.models.patched_model import PatchedModel
from pave.models.trainable import outermost_modules
from pave.types import UserError, VideoTokens

PICTURE_SIZE = (480, 640)
"""Rows and columns of a video, for bases that do not resize it."""


@dataclass
class OpCounts:
    """What was counted."""

    flops: int = 0
    """A multiply-add is two; matrix products, convolutions and attention in full, nothing else."""
    peak_bytes: int = 0
    """Most bytes that new tensors held at a time."""
    saved_bytes: int = 0
    """Bytes saved for the backward pass."""


class Shape(NamedTuple):
    """Size of a side-channel."""

    steps: int
    per_step: int


class VisionCounts(NamedTuple):
    """Work of tower and projector, and their tokens on the meta device."""

    counts: OpCounts
    projector_flops: int
    tokens: VideoTokens


@contextmanager
def count_ops(weights: nn.Module) -> Iterator[OpCounts]:
    """Count what runs inside; the weights are no activations. Attention gives the right shapes, but no numbers."""
    counts = OpCounts()
    storages = WeakIdKeyDictionary({x.untyped_storage(): 0 for x in (*weights.parameters(), *weights.buffers())})
    saved = WeakIdKeyDictionary(storages)

    def save(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage not in saved:
            saved[storage] = 0
            counts.saved_bytes += storage.nbytes()
        return x

    with _FusedAttention(counts), _Counter(counts, storages), saved_tensors_hooks(save, lambda x: x):
        yield counts


class _Counter(TorchDispatchMode):
    """Adds up the work of torch's operations, and the bytes of the tensors made here; views hold none."""

    def __init__(self, counts: OpCounts, storages: WeakIdKeyDictionary) -> None:
        super().__init__()
        self.counts = counts
        self.storages = storages
        self.current_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for x in tree_leaves((args, kwargs)):
            if isinstance(x, Tensor):
                self.storages.setdefault(x.untyped_storage(), 0)

        args, kwargs = _all_to_meta(args, kwargs)
        out = func(*args, **kwargs)
        if func.overloadpacket in flop_registry:
            self.counts.flops += flop_registry[func.overloadpacket](*args, **kwargs, out_val=out)

        for x in tree_leaves(out):
            if isinstance(x, Tensor) and (storage := x.untyped_storage()) not in self.storages:
                self.storages[storage] = 0
                self._add_bytes(storage.nbytes())
                weakref.finalize(storage, self._add_bytes, -storage.nbytes())
        return out

    def _add_bytes(self, size: int) -> None:
        self.current_bytes += size
        self.counts.peak_bytes = max(self.counts.peak_bytes, self.current_bytes)


def _all_to_meta(args: Any, kwargs: Any) -> Any:
    """Arguments with tensors of numbers made shapes, where other tensors are shapes already."""
    if not any(isinstance(x, Tensor) and x.is_meta for x in tree_leaves((args, kwargs))):
        return args, kwargs
    return tree_map(lambda x: x.to("meta") if isinstance(x, Tensor) and x.ndim else x, (args, kwargs))


class _FusedAttention(TorchFunctionMode):
    """Attention as fused kernels do it: both products of all queries and keys are counted, no scores are stored.

    A tensor made of Python numbers keeps them: towers plan their windows by the size of the pictures.
    """

    def __init__(self, counts: OpCounts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor and str(kwargs.get("device")) == "meta":
            kwargs = {**kwargs, "device": None}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)

        query, key, value = args
        self.counts.flops += 2 * query[..., 0].numel() * key.shape[-2] * (key.shape[-1] + value.shape[-1])
        return _AttentionShapes.apply(query, key, value)


class _AttentionShapes(Function):
    """Saves what a fused kernel saves for the backward pass: inputs, output and the logarithms of the scores' sums."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Make an output float[...,L,d] without numbers from three float[...,L,d]."""
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out


def count_vision(model: PatchedModel, frames: int, size: tuple[int, int] = PICTURE_SIZE) -> VisionCounts:
    """Count tower and projector of a model on the meta device, for a video of this size.

    Raises UserError for a tower whose work depends on values.
    """
    base = model.base
    pixels = torch.empty_like(base.preprocess(np.zeros((frames, *size, 3), np.uint8))[None], device="meta")
    prompt_ids = torch.zeros(1, 1, dtype=torch.long, device="meta") if base.prompt_conditioned else None

    projectors = list(outermost_modules(base, "projector"))
    projector_flops = []
    with torch.no_grad(), count_ops(model) as counts:
        hooks = [m.register_forward_pre_hook(lambda *_: projector_flops.append(-counts.flops)) for m in projectors]
        hooks += [m.register_forward_hook(lambda *_: projector_flops.append(counts.flops)) for m in projectors]
        try:
            tokens = base.encode(pixels, prompt_ids)
        except RuntimeError as error:
            name, reason = base.plugin_name(), str(error).splitlines()[0]
            raise UserError(f"{name}: this tower cannot run on shapes alone ({reason}): its work is unknown") from error
    for hook in hooks:
        hook.remove()
    return VisionCounts(counts, sum(projector_flops), tokens)


def count_patch(model: PatchedModel, name: str, query: Tensor, shape: Shape, dim: int) -> OpCounts:
    """Count a patch of a model on the meta device; what is saved counts only where gradients are on."""
    side = torch.empty(1, *shape, dim, device="meta")
    # Windows in seconds depend on time stamps: a step each second.
    seconds, frame_seconds = torch.arange(shape.steps), torch.linspace(0, shape.steps - 1, query.shape[1])
    with count_ops(model) as counts:
        model.patches[name](query, side, seconds=[seconds], frame_seconds=[frame_seconds])
    return counts


def count_llm(model: PatchedModel, length: int, cache: DynamicCache) -> OpCounts:
    """Count the LLM on the meta device for so many tokens after those in the cache, which grows, and the next token."""
    embeds = torch.empty(1, length, model.base.embed_dim, dtype=model.base.hf.dtype, device="meta")
    with torch.no_grad(), count_ops(model) as counts:
        hidden = model.base.llm(inputs_embeds=embeds, past_key_values=cache, use_cache=True).last_hidden_state
        model.base.lm_head(hidden[:, -1:])
    return counts


def count_training(model: PatchedModel, length: int, checkpointing: bool) -> OpCounts:
    """Count the forward pass of a training step through the LLM on the meta device."""
    if checkpointing and hasattr(model.base.hf, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable()
    elif checkpointing:  # older transformers
        model.gradient_checkpointing_enable({"use_reentrant": False})

    # Gradients reach the patches through the inputs of the LLM.
    requires_grad = any(x.requires_grad for x in model.patches.parameters())
    shape = (1, length, model.base.embed_dim)
    embeds = torch.empty(shape, dtype=model.base.hf.dtype, device="meta", requires_grad=requires_grad)
    # Four dimensions: transformers takes such a mask as it is; of others it would read the values.
    mask = torch.empty(1, 1, length, length, dtype=torch.bool, device="meta")

    model.train()
    with count_ops(model) as counts:
        model.base.llm(inputs_embeds=embeds, attention_mask=mask, use_cache=False)
    model.eval()
    return counts
