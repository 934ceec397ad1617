"""`pave explain`: what the patches did for one answer: where they looked, how much they changed, what it was worth.

Letters as in pave.types; H attention heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pave.data import visual_token_cache
from pave.data.collate import Sample, collate, encode_conversation, expand_video_tokens, to_device
from pave.data.dataset import select_frame_sampling, read_side_tokens
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
    """How a patch's attention is shared out over the steps of its side-channel; sums to 1 where a frame sees any."""

    frames: Tensor
    """float[layers,H,T,K], mean over the tokens of a frame."""
    tokens: Tensor
    """float[layers,H,T,K,P], of one token a frame."""
    seen: Tensor
    """bool[T,K], the steps in each frame's window."""
    update: Tensor
    """float[T,S,D], what follows from it: the patch's output."""


@dataclass(frozen=True)
class View:
    """What one patch did."""

    attention: Attention
    chosen: Tensor
    """int[T], the token of each frame that `attention.tokens` is about."""
    change: Tensor
    """float[T,S], the length of the update over the length of what it is added to."""
    seconds: Tensor | None
    """float[K]"""


@dataclass(frozen=True)
class Explanation:
    """What was found about one answer."""

    question: str
    answer: str
    clip: Clip
    views: dict[str, View]
    """By patch, of those whose side-channel the video has."""
    worth: dict[str, float]
    """Log-probability of the answer, by what was done to the model."""


def explain(
    session: Session,
    video: Path,
    question: str,
    features: Mapping[str, Path],
    others: Mapping[str, Path],
    answer: str | None = None,
    token: int | None = None,
) -> Explanation:
    """Ask, then look into the patches. `others` are feature files of another clip; `answer` replaces the model's own.

    `token` is the one of each frame, row by row, whose attention is shown; None: the one that changes most.
    Raises UserError for an unreadable file, a side-channel or token that is not there, and where no patch is at work.
    """
    model, config = session.model, session.config
    strange = {}
    for name, file in others.items():
        if name not in config.sides:
            raise UserError(f"this model has no side-channel '{name}'; {nearest(name, config.sides)}")
        side = config.sides[name]
        strange[name] = read_side_tokens(get_side(side.side or name).load, file, side.side_dim)
    scene = session.load_video(video, features)
    present = {name: side for name, side in scene.sample.sides.items() if side and model.patch_weights[name]}
    if not present:
        why = "; ".join(f"{name}: {side.absent}" for name, side in scene.provenance.sides.items() if side.absent)
        raise UserError(f"{video}: no patch is at work, so there is nothing to explain ({why or 'all are off'})")
    answer = session.ask(scene, AnswerRequest(question)).text if answer is None else answer
    assert scene.sample.frame_seconds is not None
    return Explanation(
        question,
        answer,
        _pictures(read_clip(video, select_frame_sampling(config.base, model.base)), scene.sample.frame_seconds),
        patch_views(model, scene.sample, present, token),
        answer_logprobs(model, labelled_sample(model, scene.sample, question, answer), present, strange),
    )


def _pictures(clip: Clip, seconds: Tensor) -> Clip:
    """One picture for each of T moments; some bases take several frames as one."""
    return Clip(clip.frames[np.arange(len(seconds)) * len(clip.frames) // len(seconds)], seconds.numpy())


@torch.no_grad()
def patch_views(
    model: PatchedModel, sample: Sample, present: Mapping[str, SideTokens], token: int | None
) -> dict[str, View]:
    """Each patch by itself; all of them ask with the same queries."""
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
        change = model.patch_weights[name] * update.norm(dim=-1) / embeds[..., : update.shape[-1]].float().norm(dim=-1)
        chosen = change.abs().argmax(1).cpu() if token is None else torch.full((len(query),), token)
        found = attention(patch, query, side, sample.frame_seconds, chosen)
        views[name] = View(Attention(*(x.cpu() for x in found)), chosen, change.abs().cpu(), side.seconds)
    return views


def labelled_sample(model: PatchedModel, sample: Sample, question: str, answer: str) -> Sample:
    """The conversation with its answer, whose tokens are the only labels."""
    encoded = encode_conversation(model.base, question, (), answer)
    visual = visual_token_cache.ids(model.base, sample.pixels, sample.frame_seconds)
    ids, labels = expand_video_tokens(encoded.ids, encoded.labels, visual, len(encoded.ids) + len(visual))
    return sample._replace(ids=ids, labels=labels)


def answer_logprobs(
    model: PatchedModel, sample: Sample, present: Mapping[str, SideTokens], strange: Mapping[str, SideTokens]
) -> dict[str, float]:
    """Log-probability of the answer as it is; with each side-channel off, shifted, of another clip; of the base."""
    worth = {"as it is": answer_logprob(model, sample)}
    for name, side in present.items():
        spoilt: dict[str, SideTokens | None] = {f"{name} off": None, f"{name} shifted": shift_half_clip(side)}
        if name in strange:
            spoilt[f"{name} of another clip"] = strange[name]
        for what, tokens in spoilt.items():
            worth[what] = answer_logprob(model, sample._replace(sides={**sample.sides, name: tokens}))
    weights = dict(model.patch_weights)
    model.set_patches({})
    worth["base: no patch, no LoRA"] = answer_logprob(model, sample)
    model.set_patches(weights)
    return worth


@torch.no_grad()
def answer_logprob(model: PatchedModel, sample: Sample) -> float:
    """Of all labels of a sample, given what stands before each."""
    batch = to_device(collate([sample], model.base.tokenizer.pad_token_id), next(model.parameters()).device)
    logits = model(**batch)["logits"].float()
    labels = batch["labels"][:, 1:]
    return -F.cross_entropy(logits, labels[labels != IGNORE_INDEX], reduction="sum").item()


def shift_half_clip(side: SideTokens) -> SideTokens:
    """The same tokens at other times, what is late comes early; steps of one time (several cameras) stay together."""
    moments = len(side.x) if side.seconds is None else len(side.seconds.unique())
    return side._replace(x=side.x.roll(moments // 2 * (len(side.x) // moments), 0))


@torch.no_grad()
def attention(patch: Patch, query: Tensor, side: SideTokens, frame_seconds: Tensor, chosen: Tensor) -> Attention:
    """Recomputes a patch from its projections, frame by frame; query float[T,S,Q], chosen int[T]."""
    count = len(side.x)
    query = query.to(next(patch.parameters()).dtype)
    tokens = query if patch.query_in is None else patch.query_in(query)
    tokens = tokens if patch.queries is None else patch.queries
    seconds = None if side.seconds is None else [side.seconds.cpu()]
    windows = patch.plan_windows([count], len(tokens), None, seconds, [frame_seconds.cpu()])
    total = int(windows.total)
    mix = interpolation_weights(count, total).to(tokens)
    memory = _memory(patch, side.x.to(tokens))
    start, length = (x[0].expand(len(tokens)).tolist() for x in (windows.start, windows.length))
    spans = [slice(a, a + n) for a, n in zip(start, length)]
    by_frame, by_token = [], []
    for layer in patch.layers:
        assert isinstance(layer, CrossAttentionLayer)
        weights, heard = _attend(patch, layer, tokens, torch.einsum("nk,kpc->npc", mix, memory), spans)
        shares = [torch.einsum("hswp,wk->hskp", a, mix[span]) for a, span in zip(weights, spans)]
        by_frame.append(torch.stack([a.mean(1).sum(-1) for a in shares], 1))
        by_token.append(torch.stack([a[:, i] for a, i in zip(shares, chosen)], 1))
        tokens = tokens + heard
        tokens = tokens + layer.down(F.gelu(layer.up(layer.norm(tokens))))
    tokens = tokens if patch.out is None else patch.out(tokens)
    tokens = tokens if patch.out_norm is None else patch.out_norm(tokens)
    seen = [mix[span].sum(0) > 0 for span in spans]
    return Attention(torch.stack(by_frame), torch.stack(by_token), torch.stack(seen), tokens)


def interpolation_weights(steps: int, positions: int) -> Tensor:
    """float[positions,steps]: of which steps each position is made, linear in time, ends on ends."""
    at = torch.linspace(0, steps - 1, positions)
    return (1 - (at[:, None] - torch.arange(steps)).abs()).clamp(min=0)


def _memory(patch: Patch, x: Tensor) -> Tensor:
    """float[K,P,C] -> the tokens that keys are made of, float[K,P,*]"""
    if not isinstance(patch.side_in, ConvMap):
        return patch.side_in(x)
    edge = rotary.square_side(x.shape[1])
    return patch.side_in(x.unflatten(1, (edge, edge))[None], torch.ones(1, len(x), dtype=torch.bool))[0].flatten(1, 2)


def _attend(
    patch: Patch, layer: CrossAttentionLayer, x: Tensor, memory: Tensor, spans: list[slice]
) -> tuple[list[Tensor], Tensor]:
    """Weights float[H,S,W,P] of every frame over the positions in its span, and what it hears, float[T,S,*]."""
    heads = (layer.heads, -1)
    query, key = layer.q(x).unflatten(-1, heads), layer.k(memory).unflatten(-1, heads)
    value = layer.v(memory).unflatten(-1, heads) if layer.separate_values else key
    if patch.rope:
        (frames, own), (positions, others) = x.shape[:2], memory.shape[:2]
        grid = rotary.square_side(max(own, others))
        times = rotary.frame_times(frames, torch.tensor([positions]))[0]
        query = rotary.apply_rotary(query, _turn(times, own, grid, query))
        key = rotary.apply_rotary(key, _turn(torch.arange(positions), others, grid, key))
    weights, heard = [], []
    for q, span in zip(query, spans):
        scores = torch.einsum("shd,wphd->hswp", q, key[span]) / q.shape[-1] ** 0.5
        weights.append(scores.flatten(2).softmax(-1).view_as(scores))
        heard.append(torch.einsum("hswp,wphd->shd", weights[-1], value[span]).flatten(1))
    return weights, torch.stack(heard)


def _turn(times: Tensor, tokens: int, grid: int, like: Tensor) -> rotary.Rotation:
    """A turn for each moment and token, float[U,tokens,64]."""
    return rotary.Rotation(
        *(x.view(len(times), tokens, -1) for x in rotary.rotation_at(times[None], tokens, grid, like))
    )


def as_json(e: Explanation) -> dict[str, Any]:
    """All numbers but those of single tokens, as plain dicts and lists."""
    views = {
        name: {
            "step_seconds": None if v.seconds is None else _plain(v.seconds),
            "seen": [torch.nonzero(row)[:, 0].tolist() for row in v.attention.seen],
            "attention": _plain(v.attention.frames),
            "chosen_token": v.chosen.tolist(),
            "change": _plain(v.change.mean(1)),
        }
        for name, v in e.views.items()
    }
    told = {"question": e.question, "answer": e.answer, "frame_seconds": _plain(torch.from_numpy(e.clip.seconds))}
    return {**told, "log_probability": dict(e.worth), "sides": views}


def _plain(x: Tensor) -> list[Any]:
    return x.double().numpy().round(5).tolist()
