"""PatchedModel: a frozen base, its patches, and the one place where they meet.

`fuse` and `forward` are the sentence of the paper (section 3):

    query, embeds = base.encode(video)
    embeds += patch(query, side)
    answer = llm(base.arrange_tokens(embeds), text)
"""

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


class SideBatch(TypedDict):
    """One side-channel of a batch; a sample without it has 0 steps."""

    x: Tensor
    """float[B,K,P,C], zero beyond each sample's own steps."""
    steps: list[int]
    """Valid steps of each sample, on the host."""
    seconds: list[Tensor] | None
    """float[K] of each sample, on the host, or None for a side-channel without time."""


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
        """Names of the base's tensors that are not as published."""

    @property
    def _no_split_modules(self) -> list[str]:
        """Classes of the tower's and the LLM's layers, which FSDP2 gathers one by one; accelerate asks for them."""
        # Only classes of transformers list such, and some of them None.
        listed = {name for module in self.base.modules() for name in getattr(module, "_no_split_modules", None) or ()}
        return sorted(listed & {type(module).__name__ for module in self.base.modules()})

    def set_patches(self, weights: Mapping[str, float]) -> None:
        """Switch and weight patches; those not named are off. A LoRA is as strong as the strongest of its patches.

        Raises UserError for an unknown patch, a weight that is not finite, and where LoRA was merged.
        """
        for name, weight in weights.items():
            if name not in self.patches:
                raise UserError(f"this model has no patch '{name}'; {nearest(name, self.patches)}")
            check_weight(name, weight)

        lora_weights: dict[str, float] = {}
        for name, patches in self.lora_patches.items():
            lora_weights[name] = max((weights.get(patch, 0.0) for patch in patches), key=abs, default=1.0)
        lora.set_weights(self.base.hf, lora_weights)
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
        """Trade compute for memory in the LLM, as the Trainer of older transformers calls it."""
        self.base.hf.gradient_checkpointing_enable(gradient_checkpointing_kwargs, **settings)

    def fuse(
        self,
        pixels: Tensor | list[Tensor],
        sides: Mapping[str, SideBatch],
        frame_seconds: list[Tensor] | None = None,
        prompt_ids: Tensor | None = None,
    ) -> Tensor:
        """Encode pixels float[B,T,3,h,w], or stored tokens float[B,T,S,Q+D], and patch them -> float[B,N,D].

        Videos of several sizes come as a list; those of fewer tokens end in zeros.
        """
        if isinstance(pixels, list):
            device = next(self.base.parameters()).device
            tokens = []
            for i, x in enumerate(pixels):
                sample_sides = {name: _one_sample(side, i) for name, side in sides.items()}
                sample_seconds = None if frame_seconds is None else [frame_seconds[i]]
                sample_prompt = None if prompt_ids is None else prompt_ids[i : i + 1]
                tokens.append(self.fuse(x.to(device)[None], sample_sides, sample_seconds, sample_prompt)[0])
            return pad_sequence(tokens, batch_first=True)

        query, embeds = self._visual_tokens(pixels, prompt_ids)
        for name, patch in self.patches.items():
            if name in sides and self.patch_weights[name]:
                update = self.patch_update(patch, query, sides[name], frame_seconds).to(embeds.dtype)
                embeds = torch.add(embeds, pad_last_dim(update, embeds), alpha=self.patch_weights[name])
        return self.base.arrange_tokens(embeds)

    def _visual_tokens(self, pixels: Tensor, prompt_ids: Tensor | None) -> VideoTokens:
        """Encode float[B,T,3,h,w], or split stored tokens float[B,T,S,Q+D]."""
        if pixels.ndim == 4:
            stored = pixels.to(self.base.hf.dtype)
            return VideoTokens(*stored.split([self.base.query_dim, self.base.embed_dim], -1))

        tower = next(outermost_modules(self.base, "vision tower"), None)
        if tower is None or not torch.is_grad_enabled() or any(x.requires_grad for x in tower.parameters()):
            return self.base.encode(pixels, prompt_ids)
        # Gradient checkpointing of transformers makes every input of `hf` require a gradient, pixels too: the whole
        # tower would run a second time, and backwards. What follows it needs no such care: autograd records nothing of
        # it before the first tensor that trains.
        with without_autograd(tower):
            return self.base.encode(pixels, prompt_ids)

    def patch_update(
        self, patch: nn.Module, query: Tensor, side: SideBatch, frame_seconds: list[Tensor] | None
    ) -> Tensor:
        """Compute what a patch adds, float[B,T,S,D]; exactly zero for samples without this side-channel."""
        present = [i for i, steps in enumerate(side["steps"]) if steps > 0]
        # Where no sample has it, the first runs on a step of zeros, and its update is masked: ranks that share
        # parameters wait for each other inside the patch.
        samples = present or [0]
        seconds = side["seconds"] if present else [torch.zeros(1)]

        rows = slice(None) if len(samples) == len(query) else torch.tensor(samples, device=query.device)
        update = patch(
            query[rows],
            side["x"][rows],
            [side["steps"][i] or 1 for i in samples],
            seconds=[seconds[i] for i in samples] if seconds else None,
            frame_seconds=[frame_seconds[i] for i in samples] if frame_seconds else None,
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
        """Positions int[A,B,L], or None for a base whose tokens stand one after the other, as usual."""
        if pixels is None:
            return None
        # As in `splice`: rows with more videos than there are begin with the first again.
        repeats = max(1, int((ids == VIDEO_TOKEN_ID).any(1).sum()) // len(pixels))
        return self.base.position_ids(ids, mask, list(pixels) * repeats, frame_seconds and frame_seconds * repeats)

    def splice(
        self,
        ids: Tensor,
        pixels: Tensor | list[Tensor] | None,
        sides: Mapping[str, SideBatch],
        frame_seconds: list[Tensor] | None = None,
        prompt_ids: Tensor | None = None,
    ) -> Tensor:
        """Embed int[B,L] -> float[B,L,D], with visual tokens, in order, wherever VIDEO_TOKEN_ID stands.

        Where rows have more videos than there are, they begin with the first again: two answers about each.
        Raises UserError where a row does not show exactly one video.
        """
        if pixels is None:
            return self.base.hf.get_input_embeddings()(ids.clamp(min=0))

        visual = self.fuse(pixels, sides, frame_seconds, prompt_ids)
        videos, length = visual.shape[:2]
        video_lengths = [length] * videos
        if isinstance(pixels, list):
            video_lengths = [self.base.num_visual_tokens(len(x), tuple(x.shape[-2:])) for x in pixels]
        is_video_token = ids == VIDEO_TOKEN_ID
        _check_one_video_each(is_video_token.sum(1).tolist(), video_lengths)
        has_video = is_video_token.any(1).long()
        video_index = (has_video.cumsum(0) - has_video) % videos
        return self.scatter_visual_tokens(ids, visual.flatten(0, 1), video_index * length)

    def scatter_visual_tokens(self, ids: Tensor, visual: Tensor, first: Tensor) -> Tensor:
        """Embed int[B,L] -> float[B,L,D]; each row takes tokens of `visual` float[M,D] from its `first` int[B] on."""
        embeds = self.base.hf.get_input_embeddings()(ids.clamp(min=0))
        is_video_token = ids == VIDEO_TOKEN_ID
        source = (first[:, None] + is_video_token.cumsum(1) - 1).clamp(min=0)
        return torch.where(is_video_token[..., None], visual.to(embeds.dtype)[source], pad_last_dim(embeds, visual))

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
        """Compute the loss (mean over the batch's label tokens) and logits float[n,V] at the n positions with a label.

        `targets` float[T,h,w,C] are a teacher's features of each video: the distance of the base's is added.
        """
        embeds = self.splice(ids, pixels, sides or {}, frame_seconds, prompt_ids)
        states = self.base.llm(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=self.position_ids(ids, mask, pixels, frame_seconds),
            use_cache=False,
            **({} if targets is None else {"output_hidden_states": True}),
        )

        has_label = labels[:, 1:] != IGNORE_INDEX
        logits = self.base.lm_head(states.last_hidden_state[:, :-1][has_label])
        loss = F.cross_entropy(logits.float(), labels[:, 1:][has_label])

        if targets is not None:
            head = self.base.distillation_head
            assert head is not None, "targets come with a base that has a distillation head"
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
        """Generate greedy answers int[B,new] to left-padded prompts; `sampling` are transformers' own arguments."""
        embeds = self.splice(ids, pixels, sides or {}, frame_seconds, prompt_ids)
        # Quirk: official answers start from a bos token that the model never sees but the repetition penalty counts.
        start = torch.full((len(ids), 1), self.base.hf.generation_config.bos_token_id, device=ids.device)
        generated = self.base.hf.generate(
            start,
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=self.position_ids(ids, mask, pixels, frame_seconds),
            **{"do_sample": False, "temperature": None, "top_p": None, "top_k": None, **sampling},
        )
        return generated[:, 1:]


def check_weight(name: str, weight: float) -> None:
    """Raises UserError for a patch weight that is not finite."""
    if not math.isfinite(weight):
        raise UserError(f"patch '{name}': weight {weight}, expected a finite number")


def pad_last_dim(x: Tensor, like: Tensor) -> Tensor:
    """Append zeros to float[...,D], where a base has features for inner layers of its LLM behind its tokens."""
    missing = like.shape[-1] - x.shape[-1]
    return F.pad(x, (0, missing)) if missing else x


def _one_sample(side: SideBatch, i: int) -> SideBatch:
    """The side-channel of one sample of a batch."""
    seconds = None if side["seconds"] is None else [side["seconds"][i]]
    return {"x": side["x"][i : i + 1], "steps": [side["steps"][i]], "seconds": seconds}


def _check_one_video_each(row_lengths: Sequence[int], video_lengths: Sequence[int]) -> None:
    """Check the visual tokens of rows and of videos: each row with any has one video, or all rows come once more.

    A row whose end was cut uses the first tokens of its video. Raises UserError.
    """
    shown = [length for length in row_lengths if length]
    if not shown or len(shown) % len(video_lengths):
        raise UserError(
            f"a batch: {len(shown)} rows show a video, there are {len(video_lengths)} videos; expected a row for each, "
            "or all of them again"
        )
    for row_length, video_length in zip(shown, cycle(video_lengths)):
        if row_length > video_length:
            raise UserError(
                f"a batch: a row has {row_length} visual tokens, its video {video_length} tokens; expected one video"
            )
