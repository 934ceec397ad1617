"""Pave: a base, its patches, and the one place where they meet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from pave.models import lora
from pave.models.base import Base
from pave.models.trainable import outermost_modules, without_autograd
from pave.types import IGNORE_INDEX, VIDEO_TOKEN_ID, UserError, VideoTokens
from pave.utils.registry import nearest


def check_weight(name: str, weight: float) -> None:
    """Raises UserError for a weight that no patch can have."""
    if not math.isfinite(weight):
        raise UserError(f"patch '{name}': weight {weight}, expected a finite number")


class SideBatch(TypedDict):
    """One side-channel of a batch; a sample without it has 0 steps."""

    x: Tensor
    """float[B,K,P,C], zero beyond each sample's own steps."""
    steps: list[int]
    """Valid steps of each sample, on the host."""
    seconds: list[Tensor] | None
    """float[K] of each sample, on the host, or None where the channel has no clock."""


def _of_one(side: SideBatch, i: int) -> SideBatch:
    """The side-channel of one sample of a batch."""
    seconds = side["seconds"]
    return {"x": side["x"][i : i + 1], "steps": [side["steps"][i]], "seconds": seconds and [seconds[i]]}


def pad_last_dim(x: Tensor, like: Tensor) -> Tensor:
    """Zeros behind float[...,D], where a base has more behind its tokens for inner layers of its LLM."""
    more = like.shape[-1] - x.shape[-1]
    return F.pad(x, (0, more)) if more else x


def _check_own(places: Sequence[int], own: Sequence[int]) -> None:
    """Raises UserError unless each row with visual places has a video, of so many tokens, to itself, or once more.

    A row whose end was cut uses the first tokens of its video.
    """
    shows = [count for count in places if count]
    if not shows or len(shows) % len(own):
        raise UserError(
            f"a batch: {len(shows)} rows show a video, there are {len(own)} videos; expected a row for each, or all "
            "of them again"
        )
    for count, tokens in zip(shows, cycle(own)):
        if count > tokens:
            raise UserError(f"a batch: a row has {count} visual places, its video {tokens} tokens; expected one video")


class PatchedModel(nn.Module):
    """A frozen video language model with one patch for each side-channel."""

    def __init__(self, base: Base, patches: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.base = base
        self.patches = nn.ModuleDict(patches)
        self.patch_weights = dict.fromkeys(patches, 1.0)
        """Factor on what each patch adds; 0 switches it off."""
        self.lora_patches = {name: list(patches) for name in lora.names(base.hf)}
        """The patches that were trained with each LoRA."""
        self.modified_base_tensors: set[str] = set()
        """Tensors of the base that are not as published."""

    @property
    def _no_split_modules(self) -> list[str]:
        """Classes of the tower's and the LLM's layers, which FSDP2 gathers one by one; accelerate asks for them."""
        kept = {name for part in self.base.modules() for name in getattr(part, "_no_split_modules", None) or ()}
        return sorted(kept & {type(part).__name__ for part in self.base.modules()})

    def set_patches(self, weights: Mapping[str, float]) -> None:
        """Switch and weight patches; those not named are off. A LoRA is as strong as the strongest of its patches.

        Raises UserError for an unknown patch, a weight that is no number, and where LoRA was merged.
        """
        for name, weight in weights.items():
            if name not in self.patches:
                raise UserError(f"this model has no patch '{name}'; {nearest(name, self.patches)}")
            check_weight(name, weight)
        strength = {
            name: max((weights.get(patch, 0.0) for patch in patches), key=abs, default=1.0)
            for name, patches in self.lora_patches.items()
        }
        lora.set_weights(self.base.hf, strength)
        self.patch_weights = {name: float(weights.get(name, 0.0)) for name in self.patches}

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Trade compute for memory in the LLM; the Trainer calls this."""
        self.base.hf.activation_checkpointing_enable(activation_checkpointing_kwargs, every_n_layers, offload)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **settings: Any
    ) -> None:
        """The same, as the Trainer of older transformers calls it."""
        self.base.hf.gradient_checkpointing_enable(gradient_checkpointing_kwargs, **settings)

    def fuse(
        self,
        pixels: Tensor | list[Tensor],
        sides: Mapping[str, SideBatch],
        frame_seconds: list[Tensor] | None = None,
        prompt_ids: Tensor | None = None,
    ) -> Tensor:
        """float[B,T,3,h,w], or stored tokens float[B,T,S,Q+D], and side-channels -> visual tokens float[B,N,D].

        Videos of several sizes come as a list; those of fewer tokens end in zeros.
        """
        if isinstance(pixels, list):
            device = next(self.base.parameters()).device
            alone = [
                self.fuse(
                    x.to(device)[None],
                    {name: _of_one(side, i) for name, side in sides.items()},
                    frame_seconds and [frame_seconds[i]],
                    None if prompt_ids is None else prompt_ids[i : i + 1],
                )
                for i, x in enumerate(pixels)
            ]
            return pad_sequence([visual[0] for visual in alone], batch_first=True)
        if pixels.ndim == 5:
            query, embeds = self._see(*(x for x in (pixels, prompt_ids) if x is not None))
        else:
            stored = pixels.to(self.base.hf.dtype)
            query, embeds = stored.split([self.base.query_dim, self.base.embed_dim], -1)
        for name, patch in self.patches.items():
            if name in sides and self.patch_weights[name]:
                update = self.patch_update(patch, query, sides[name], frame_seconds).to(embeds.dtype)
                embeds = torch.add(embeds, pad_last_dim(update, embeds), alpha=self.patch_weights[name])
        return self.base.arrange_tokens(embeds)

    def _see(self, *inputs: Tensor) -> VideoTokens:
        """What the base makes of pixels, and of prompt_ids where it takes any; a tower that does not learn only looks."""
        tower = next(outermost_modules(self.base, "vision tower"), None) if torch.is_grad_enabled() else None
        if tower is None or any(x.requires_grad for x in tower.parameters()):
            return self.base.encode(*inputs)
        # Gradient checkpointing of transformers makes every input of `hf` require a gradient, pictures too: the whole
        # tower would run a second time, and backwards. What follows it needs no such care: autograd records nothing of
        # it before the first tensor that learns.
        with without_autograd(tower):
            return self.base.encode(*inputs)

    def patch_update(self, patch: nn.Module, query: Tensor, side: SideBatch, frame_seconds: list[Tensor] | None) -> Tensor:
        """What a patch adds, float[B,T,S,D]; exactly nothing for samples without this side-channel."""
        present = [i for i, steps in enumerate(side["steps"]) if steps > 0]
        # Where no sample has it, one runs on a step of zeros for nothing: ranks that share parameters wait in there.
        run = present or [0]
        rows = slice(None) if len(run) == len(query) else torch.tensor(run, device=query.device)
        seconds = side["seconds"] if present else [torch.zeros(1)]
        update = patch(
            query[rows],
            side["x"][rows],
            [side["steps"][i] or 1 for i in run],
            seconds=[seconds[i] for i in run] if seconds else None,
            frame_seconds=[frame_seconds[i] for i in run] if frame_seconds else None,
        )
        if not present:
            update = update.masked_fill(torch.tensor(True, device=update.device), 0.0)
        if isinstance(rows, slice):
            return update
        return update.new_zeros(*query.shape[:3], update.shape[-1]).index_copy(0, rows, update)

    def position_ids(
        self,
        ids: Tensor,
        mask: Tensor,
        pixels: Tensor | list[Tensor] | None,
        frame_seconds: list[Tensor] | None = None,
    ) -> Tensor | None:
        """int[A,B,L], or None for a base whose tokens stand one after the other, as usual."""
        if pixels is None:
            return None
        again = max(1, int((ids == VIDEO_TOKEN_ID).any(1).sum()) // len(pixels))
        return self.base.position_ids(ids, mask, list(pixels) * again, frame_seconds and frame_seconds * again)

    def splice(
        self,
        ids: Tensor,
        pixels: Tensor | list[Tensor] | None,
        sides: Mapping[str, SideBatch],
        frame_seconds: list[Tensor] | None = None,
        prompt_ids: Tensor | None = None,
    ) -> Tensor:
        """int[B,L] with VIDEO at every visual position -> float[B,L,D]; videos fill the positions in order.

        Where rows have more videos than there are, they begin with the first again: two answers about each.
        Raises UserError where a row does not show one video, its own.
        """
        if pixels is None:
            return self.base.hf.get_input_embeddings()(ids.clamp(min=0))
        visual = self.fuse(pixels, sides, frame_seconds, prompt_ids)
        rows, places = visual.shape[1], ids == VIDEO_TOKEN_ID
        own = [rows] * len(visual)
        if isinstance(pixels, list):
            own = [self.base.num_visual_tokens(len(x), tuple(x.shape[-2:])) for x in pixels]
        _check_own(places.sum(1).tolist(), own)
        shows = places.any(1).long()
        return self.scatter_visual_tokens(ids, visual.flatten(0, 1), (shows.cumsum(0) - shows) % len(visual) * rows)

    def scatter_visual_tokens(self, ids: Tensor, visual: Tensor, first: Tensor) -> Tensor:
        """int[B,L] with VIDEO -> float[B,L,D]; a row takes those of `visual` float[M,D] from its `first` int[B] on."""
        embeds = self.base.hf.get_input_embeddings()(ids.clamp(min=0))
        places = ids == VIDEO_TOKEN_ID
        source = (first[:, None] + places.cumsum(1) - 1).clamp(min=0)
        return torch.where(places[..., None], visual.to(embeds.dtype)[source], pad_last_dim(embeds, visual))

    def forward(
        self,
        ids: Tensor,
        mask: Tensor,
        labels: Tensor,
        pixels: Tensor | list[Tensor] | None = None,
        sides: Mapping[str, SideBatch] | None = None,
        frame_seconds: list[Tensor] | None = None,
        prompt_ids: Tensor | None = None,
        targets: Sequence[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Loss (mean over the batch's label tokens) and logits float[n,V] at the n positions that have a label.

        With what a teacher sees of each video, how far the base is off counts as much.
        """
        embeds = self.splice(ids, pixels, sides or {}, frame_seconds, prompt_ids)
        places = self.position_ids(ids, mask, pixels, frame_seconds)
        more = {} if targets is None else {"output_hidden_states": True}
        states = self.base.llm(inputs_embeds=embeds, attention_mask=mask, position_ids=places, use_cache=False, **more)
        wanted = labels[:, 1:] != IGNORE_INDEX
        logits = self.base.lm_head(states.last_hidden_state[:, :-1][wanted])
        loss = F.cross_entropy(logits.float(), labels[:, 1:][wanted])
        if targets is not None:
            head = self.base.distillation_head
            assert head is not None
            loss = loss + head.distance(head(states.hidden_states), ids == VIDEO_TOKEN_ID, targets)
        return {"loss": loss, "logits": logits}

    @torch.no_grad()
    def generate(
        self,
        ids: Tensor,
        mask: Tensor,
        pixels: Tensor | list[Tensor] | None = None,
        sides: Mapping[str, SideBatch] | None = None,
        frame_seconds: list[Tensor] | None = None,
        prompt_ids: Tensor | None = None,
        **sampling: Any,
    ) -> Tensor:
        """Greedy answers int[B,new] to left-padded prompts; `sampling` are transformers' generation arguments."""
        embeds = self.splice(ids, pixels, sides or {}, frame_seconds, prompt_ids)
        config = self.base.hf.generation_config
        # The release starts from one bos token that is never shown to the model but counts for the repetition penalty.
        start = torch.full((len(ids), 1), config.bos_token_id, device=ids.device)
        new = self.base.hf.generate(
            start,
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=self.position_ids(ids, mask, pixels, frame_seconds),
            **{"do_sample": False, "temperature": None, "top_p": None, "top_k": None, **sampling},
        )
        return new[:, 1:]
