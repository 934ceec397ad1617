"""`pave explain`: what the patches did for one answer: attention, size of the update, log-probability of the answer.

Letters as in pave.types; H attention heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pave.config import Config
from pave.data.collate import Sample, collate, encode_conversation, expand_video_tokens, to_device
from pave.data.dataset import read_side_tokens, select_frame_sampling
from pave.inference.session import AnswerRequest, Session
from pave.media.video import read_clip
from pave.models.patch import rotary
from pave.models.patch.conv import ConvMap
from pave.models.patch.patch import CrossAttentionLayer, Patch
from pave.models.patched_model import PatchedModel
from pave.sides.base import get_side
from pave.types import IGNORE_INDEX, Clip, SideTokens, UserError
from pave.utils.registry import nearest


class Attention(NamedTuple):
    """Attention of a patch over the steps of its side-channel; sums to 1 where a frame's window has any."""

    frames: Tensor
    """float[layers,H,T,K], mean over the tokens of a frame."""
    tokens: Tensor
    """float[layers,H,T,K,P], of one token of each frame."""
    in_window: Tensor
    """bool[T,K], the steps in each frame's window."""
    update: Tensor
    """float[T,S,D], the patch's output that follows from it."""


@dataclass(frozen=True)
class View:
    """What one patch did."""

    attention: Attention
    shown_tokens: Tensor
    """int[T], the token of each frame that `attention.tokens` is about."""
    change: Tensor
    """float[T,S], the length of the update over the length of the visual token that it is added to."""
    seconds: Tensor | None
    """float[K]"""


@dataclass(frozen=True)
class Explanation:
    """How one answer came about."""

    question: str
    answer: str
    clip: Clip
    """One frame for each moment of the visual tokens."""
    views: dict[str, View]
    """By patch, of those whose side-channel the video has."""
    logprobs: dict[str, float]
    """Log-probability of the answer, by the change to the model or its side-channels."""


def explain(
    session: Session,
    video: Path,
    question: str,
    features: Mapping[str, Path],
    other_features: Mapping[str, Path],
    answer: str | None = None,
    token: int | None = None,
) -> Explanation:
    """Ask, then read out the patches. `other_features` are of another clip; `answer` replaces the model's own.

    `token` is the one of each frame, row by row, whose attention is shown; None: the one that changes most.
    Raises UserError for an unreadable file, an unknown side-channel or token, and where no patch is at work.
    """
    model, config = session.model, session.config
    other_clip = {name: _read_side(config, name, file) for name, file in other_features.items()}

    loaded = session.load_video(video, features)
    sample = loaded.sample
    present = {name: side for name, side in sample.sides.items() if side and model.patch_weights[name]}
    if not present:
        absent = "; ".join(f"{name}: {side.absent}" for name, side in loaded.provenance.sides.items() if side.absent)
        raise UserError(f"{video}: no patch is at work, so there is nothing to explain ({absent or 'all are off'})")

    if answer is None:
        answer = session.ask(loaded, AnswerRequest(question)).text
    assert sample.frame_seconds is not None
    clip = read_clip(video, select_frame_sampling(config.base, model.base))
    labelled = labelled_sample(model, sample, question, answer)
    return Explanation(
        question=question,
        answer=answer,
        clip=_one_frame_each(clip, sample.frame_seconds),
        views=patch_views(model, sample, present, token),
        logprobs=answer_logprobs(model, labelled, present, other_clip),
    )


def _read_side(config: Config, name: str, file: Path) -> SideTokens:
    """Read feature tokens for a patch. Raises UserError."""
    if name not in config.sides:
        raise UserError(f"this model has no side-channel '{name}'; {nearest(name, config.sides)}")
    side = config.sides[name]
    return read_side_tokens(get_side(side.side or name).load, file, side.side_dim)


def _one_frame_each(clip: Clip, seconds: Tensor) -> Clip:
    """Take one frame for each of T moments; some bases take several frames as one."""
    indices = np.arange(len(seconds)) * len(clip.frames) // len(seconds)
    return Clip(clip.frames[indices], seconds.numpy())


@torch.no_grad()
def patch_views(
    model: PatchedModel, sample: Sample, present: Mapping[str, SideTokens], token: int | None
) -> dict[str, View]:
    """Run each patch on its own; all have the same queries. Raises UserError for a token that a frame does not have."""
    assert sample.pixels is not None
    assert sample.frame_seconds is not None
    device = next(model.parameters()).device
    (query,), (embeds,) = model.base.encode(sample.pixels[None].to(device))
    if token is not None and not 0 <= token < query.shape[1]:
        raise UserError(f"token {token}: a frame has {query.shape[1]} tokens, numbered from 0")

    views = {}
    for name, side in present.items():
        patch = model.patches[name]
        assert isinstance(patch, Patch)
        seconds = None if side.seconds is None else [side.seconds]
        (update,) = patch(query[None], side.x[None].to(device), seconds=seconds, frame_seconds=[sample.frame_seconds])

        # The LLM's tokens may be wider than the patch's output: the features of inner layers follow.
        lengths = embeds[..., : update.shape[-1]].float().norm(dim=-1)
        change = (model.patch_weights[name] * update.norm(dim=-1) / lengths).abs()
        shown_tokens = change.argmax(1).cpu() if token is None else torch.full((len(query),), token)

        attention = recompute_attention(patch, query, side, sample.frame_seconds, shown_tokens)
        on_cpu = Attention(*(x.cpu() for x in attention))
        views[name] = View(on_cpu, shown_tokens, change.cpu(), side.seconds)
    return views


def labelled_sample(model: PatchedModel, sample: Sample, question: str, answer: str) -> Sample:
    """Put a question and its answer into a sample; the answer's tokens are the only labels."""
    encoded = encode_conversation(model.base, question, (), answer)
    assert sample.pixels is not None
    visual_ids = model.base.visual_token_ids(len(sample.pixels), tuple(sample.pixels.shape[-2:]), sample.frame_seconds)
    length = len(encoded.ids) + len(visual_ids)
    ids, labels = expand_video_tokens(encoded.ids, encoded.labels, visual_ids, length)
    return sample._replace(ids=ids, labels=labels)


def answer_logprobs(
    model: PatchedModel, sample: Sample, present: Mapping[str, SideTokens], other_clip: Mapping[str, SideTokens]
) -> dict[str, float]:
    """Log-probability of the answer as it is; with each side-channel off, shifted, of another clip; of the base."""
    logprobs = {"as it is": answer_logprob(model, sample)}
    for name, side in present.items():
        variants: dict[str, SideTokens | None] = {f"{name} off": None, f"{name} shifted": shift_half_clip(side)}
        if name in other_clip:
            variants[f"{name} of another clip"] = other_clip[name]
        for label, tokens in variants.items():
            logprobs[label] = answer_logprob(model, sample._replace(sides={**sample.sides, name: tokens}))

    weights = dict(model.patch_weights)
    model.set_patches({})
    logprobs["base: no patch, no LoRA"] = answer_logprob(model, sample)
    model.set_patches(weights)
    return logprobs


@torch.no_grad()
def answer_logprob(model: PatchedModel, sample: Sample) -> float:
    """Log-probability of all labels of a sample."""
    batch = to_device(collate([sample], model.base.tokenizer.pad_token_id), next(model.parameters()).device)
    logits = model(**batch)["logits"].float()
    labels = batch["labels"][:, 1:]
    return -F.cross_entropy(logits, labels[labels != IGNORE_INDEX], reduction="sum").item()


def shift_half_clip(side: SideTokens) -> SideTokens:
    """Move the tokens by half a clip, the last ones to the start; steps of one time (several cameras) stay together."""
    num_times = len(side.x) if side.seconds is None else len(side.seconds.unique())
    steps_per_time = len(side.x) // num_times
    return side._replace(x=side.x.roll(num_times // 2 * steps_per_time, 0))


@torch.no_grad()
def recompute_attention(
    patch: Patch, query: Tensor, side: SideTokens, frame_seconds: Tensor, shown_tokens: Tensor
) -> Attention:
    """Recompute a patch frame by frame from its projections; query float[T,S,Q], shown_tokens int[T].

    The patch itself works on all frames at once, with kernels that return no attention.
    """
    num_steps = len(side.x)
    query = query.to(next(patch.parameters()).dtype)
    tokens = query if patch.query_in is None else patch.query_in(query)
    if patch.queries is not None:
        tokens = patch.queries

    # Windows are spans of positions, which are steps or lie between them.
    seconds = None if side.seconds is None else [side.seconds.cpu()]
    windows = patch.plan_windows([num_steps], len(tokens), None, seconds, [frame_seconds.cpu()])
    mix = interpolation_weights(num_steps, int(windows.total)).to(tokens)
    starts, lengths = (x[0].expand(len(tokens)).tolist() for x in (windows.start, windows.length))
    spans = [slice(start, start + length) for start, length in zip(starts, lengths)]
    memory = torch.einsum("nk,kpc->npc", mix, _map_side(patch, side.x.to(tokens)))

    by_frame, by_token = [], []
    for layer in patch.layers:
        assert isinstance(layer, CrossAttentionLayer)
        weights, update = _attend(patch, layer, tokens, memory, spans)
        # From positions back to steps.
        by_step = [torch.einsum("hswp,wk->hskp", w, mix[span]) for w, span in zip(weights, spans)]
        by_frame.append(torch.stack([w.mean(1).sum(-1) for w in by_step], 1))
        by_token.append(torch.stack([w[:, token] for w, token in zip(by_step, shown_tokens)], 1))

        tokens = tokens + update
        tokens = tokens + layer.down(F.gelu(layer.up(layer.norm(tokens))))

    tokens = tokens if patch.out is None else patch.out(tokens)
    tokens = tokens if patch.out_norm is None else patch.out_norm(tokens)
    in_window = torch.stack([mix[span].sum(0) > 0 for span in spans])
    return Attention(torch.stack(by_frame), torch.stack(by_token), in_window, tokens)


def interpolation_weights(steps: int, positions: int) -> Tensor:
    """Weights float[positions,steps] of linear interpolation in time, ends on ends."""
    times = torch.linspace(0, steps - 1, positions)
    return (1 - (times[:, None] - torch.arange(steps)).abs()).clamp(min=0)


def _map_side(patch: Patch, x: Tensor) -> Tensor:
    """Map side tokens float[K,P,C] to the width of the keys, float[K,P,*]."""
    if not isinstance(patch.side_in, ConvMap):
        return patch.side_in(x)
    edge = rotary.square_side(x.shape[1])
    is_valid = torch.ones(1, len(x), dtype=torch.bool)
    return patch.side_in(x.unflatten(1, (edge, edge))[None], is_valid)[0].flatten(1, 2)


def _attend(
    patch: Patch, layer: CrossAttentionLayer, x: Tensor, memory: Tensor, spans: list[slice]
) -> tuple[list[Tensor], Tensor]:
    """Weights float[H,S,W,P] of every frame over the positions in its span, and the attended values float[T,S,*]."""
    heads = (layer.heads, -1)
    query, key = layer.q(x).unflatten(-1, heads), layer.k(memory).unflatten(-1, heads)
    value = layer.v(memory).unflatten(-1, heads) if layer.separate_values else key

    if patch.rope:
        (frames, per_frame), (positions, per_position) = x.shape[:2], memory.shape[:2]
        grid = rotary.square_side(max(per_frame, per_position))
        times = rotary.frame_times(frames, torch.tensor([positions]))[0]
        query = rotary.apply_rotary(query, _rotation(times, per_frame, grid, query))
        key = rotary.apply_rotary(key, _rotation(torch.arange(positions), per_position, grid, key))

    weights, values = [], []
    for q, span in zip(query, spans):
        scores = torch.einsum("shd,wphd->hswp", q, key[span]) / q.shape[-1] ** 0.5
        weights.append(scores.flatten(2).softmax(-1).view_as(scores))
        values.append(torch.einsum("hswp,wphd->shd", weights[-1], value[span]).flatten(1))
    return weights, torch.stack(values)


def _rotation(times: Tensor, tokens: int, grid: int, like: Tensor) -> rotary.Rotation:
    """A rotation float[U,tokens,64] for each of U times and each token."""
    rotation = rotary.rotation_at(times[None], tokens, grid, like)
    return rotary.Rotation(*(x.view(len(times), tokens, -1) for x in rotation))
