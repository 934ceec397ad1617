"""Greedy answers to many questions about a few videos: what questions have in common is computed once.

Each video is encoded once, and the LLM reads once how the token sequences of its questions begin: system prompt, visual
tokens, common words. Each question then goes on from a copy of what was kept of that (the KV cache), all in one batch:

    cache    | padding, beginning of video 0      | padding, rest of question 0 | answer ...
             | padding, beginning of video 0      | padding, rest of question 1 | answer ...
             | padding, beginning of video 1      | padding, rest of question 2 | answer ...

Letters as in pave.types; G videos, R questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from pave.data.collate import Sample, collate, pad, to_device
from pave.models.patched_model import Pave
from pave.types import VIDEO, UserError

NEUTRAL = {
    "num_beams": 1,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": 0,
    "encoder_repetition_penalty": 1.0,
    **dict.fromkeys(("bad_words_ids", "sequence_bias", "suppress_tokens", "begin_suppress_tokens", "guidance_scale")),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty")),
}
"""Settings of `generate` that change greedy answers and are not done here, where they change nothing."""


class Asked(NamedTuple):
    """Questions about one video."""

    sample: Sample
    """Of the first question, with the video and its side-channels."""
    prompts: list[list[int]]
    """Token ids of every question, with VIDEO at every visual position."""


class Decoding(NamedTuple):
    """How answers are found."""

    max_new_tokens: int
    end: list[int]
    """Tokens that end an answer."""
    repetition_penalty: float
    start: int | None
    """A token that counts as said already for the penalty, as in the release."""


class Begun(NamedTuple):
    """What the LLM keeps of the beginnings."""

    cache: Any
    mask: Tensor
    """bool[G,P], padded at the left."""
    visual: Tensor
    """float[G*N,D]"""
    next: Tensor
    """int[G], the row of `visual` that comes next for each video."""


class Rest(NamedTuple):
    """What of a question follows the beginning."""

    video: int
    ids: list[int]
    places: Tensor
    """int[A,L], where the tokens stand."""


def decoding(model: Pave, max_new_tokens: int) -> Decoding:
    """As the base's generation config says. Raises UserError for what is not done here."""
    config = model.base.hf.generation_config
    for name, neutral in NEUTRAL.items():
        if (value := getattr(config, name, None)) not in (None, neutral):
            raise UserError(f"generation_config.json of the base has {name}={value}, which is not done here; remove it")
    end = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    return Decoding(max_new_tokens, end, config.repetition_penalty or 1.0, config.bos_token_id)


@torch.no_grad()
def answers(model: Pave, asked: Sequence[Asked], how: Decoding, rows: int) -> list[list[list[int]]]:
    """Token ids of the answer to every question of each video, without their end; `rows` questions go at once."""
    common = [_common(a.prompts) for a in asked]
    places = [[_places(model, a.sample, prompt) for prompt in a.prompts] for a in asked]
    begun = _begin(model, asked, common, [own[0] for own in places])
    rest = [
        Rest(video, prompt[start:], place[:, start:])
        for video, (a, own, start) in enumerate(zip(asked, places, common))
        for prompt, place in zip(a.prompts, own)
    ]
    parts = [_go_on(model, begun, rest[i : i + rows], how) for i in range(0, len(rest), rows)]
    new = iter([tokens for part in parts for tokens in part])
    return [[next(new) for _ in a.prompts] for a in asked]


def _common(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all begin with, but one less than the shortest has: the last one says what comes first."""
    same = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*prompts))
    return min(sum(1 for _ in same), min(map(len, prompts)) - 1)


def _places(model: Pave, sample: Sample, prompt: list[int]) -> Tensor:
    """int[A,L], where the tokens of a prompt stand: one after the other, unless its base knows better."""
    ids = torch.tensor([prompt])
    pixels = None if sample.pixels is None else sample.pixels[None]
    seconds = None if sample.frame_seconds is None else [sample.frame_seconds]
    found = model.positions(ids, torch.ones_like(ids), pixels, seconds)
    return torch.arange(len(prompt))[None] if found is None else found[:, 0]


def _side_by_side(places: Sequence[Tensor]) -> Tensor:
    """int[A,L] of each row -> int[A,R,L], or int[R,L] where A is 1, padded at the left."""
    padded = pad_sequence([row.T for row in places], batch_first=True, padding_side="left").permute(2, 0, 1)
    return padded[0] if len(padded) == 1 else padded


def _begin(model: Pave, asked: Sequence[Asked], common: Sequence[int], places: Sequence[Tensor]) -> Begun:
    """Read the beginning of each video's questions."""
    samples = [a.sample._replace(ids=a.prompts[0][:length], labels=[]) for a, length in zip(asked, common)]
    batch = collate(samples, model.base.tokenizer.pad_token_id, left=True)
    batch = to_device(batch, next(model.parameters()).device)
    visual = model.fuse(batch["pixels"], batch["sides"], batch["frame_seconds"], batch.get("guides"))
    first = torch.arange(len(visual), device=visual.device) * visual.shape[1]
    visual = visual.flatten(0, 1)
    cache = DynamicCache()
    positions = _side_by_side([place[:, :length] for place, length in zip(places, common)]).to(visual.device)
    _read(model, model.place(batch["ids"], visual, first), batch["mask"], positions, cache)
    return Begun(cache, batch["mask"], visual, first + (batch["ids"] == VIDEO).sum(1))


def _go_on(model: Pave, begun: Begun, rest: Sequence[Rest], how: Decoding) -> list[list[int]]:
    """Answers to R questions."""
    device = begun.mask.device
    videos = torch.tensor([r.video for r in rest], device=device)
    cache = DynamicCache()
    for i, layer in enumerate(begun.cache.layers):
        cache.update(layer.keys[videos], layer.values[videos], i)
    fill = model.base.tokenizer.pad_token_id
    ids = pad([r.ids for r in rest], fill, left=True).to(device)
    own = pad([[1] * len(r.ids) for r in rest], 0, left=True).bool().to(device)
    positions = _side_by_side([r.places for r in rest]).to(device)
    mask = torch.cat([begun.mask[videos], own], 1)
    embeds = model.place(ids, begun.visual, begun.next[videos])
    said = ids.new_full((len(rest), 0 if how.start is None else 1), how.start or 0)
    new = ids[:, :0]
    running = mask.new_ones(len(rest))
    while True:
        logits = model.base.head(_read(model, embeds, mask, positions, cache)).float()
        token = _penalised(logits, torch.cat([said, new], 1), how.repetition_penalty).argmax(-1)
        token = token.masked_fill(~running, fill)
        new = torch.cat([new, token[:, None]], 1)
        running &= ~torch.isin(token, torch.tensor(how.end, device=device))
        if new.shape[1] == how.max_new_tokens or not running.any():
            return [_until_end(row, how.end) for row in new.tolist()]
        mask = torch.cat([mask, mask.new_ones(len(rest), 1)], 1)
        positions = positions[..., -1:] + 1
        embeds = model.base.hf.get_input_embeddings()(token[:, None])


def _read(model: Pave, embeds: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
    """Let the LLM read float[R,L,D] after what is in the cache, which grows; its last hidden state float[R,D]."""
    return model.base.lm(
        inputs_embeds=embeds, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
    ).last_hidden_state[:, -1]


def _penalised(logits: Tensor, said: Tensor, penalty: float) -> Tensor:
    """float[R,V] with the logits of what was said, int[R,n], made less likely."""
    score = logits.gather(1, said)
    return logits.scatter(1, said, torch.where(score < 0, score * penalty, score / penalty))


def _until_end(tokens: list[int], end: Sequence[int]) -> list[int]:
    return tokens[: next((i for i, token in enumerate(tokens) if token in end), len(tokens))]
