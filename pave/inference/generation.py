"""Greedy answers to many questions about a few videos; the beginning that prompts share is computed once.

`prefill` encodes each video once and lets the LLM read the common beginning of its prompts once: system prompt, visual
tokens, common words. `decode` continues each prompt from a copy of that key-value cache, many prompts in one batch:

    cache    | padding, beginning of video 0      | padding, suffix of question 0 | answer ...
             | padding, beginning of video 0      | padding, suffix of question 1 | answer ...
             | padding, beginning of video 1      | padding, suffix of question 2 | answer ...

Letters as in pave.types; G videos, R prompts in a batch, P tokens of the longest beginning, A axes of positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from pave.data.collate import Sample, collate, pad_rows, to_device
from pave.models.patched_model import PatchedModel
from pave.types import VIDEO_TOKEN_ID, UserError

NEUTRAL_SETTINGS = {
    "num_beams": 1,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": 0,
    "encoder_repetition_penalty": 1.0,
    **dict.fromkeys(("bad_words_ids", "sequence_bias", "suppress_tokens", "begin_suppress_tokens", "guidance_scale")),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty")),
}
"""Settings of `generate` that would change greedy answers and are not implemented here, with their neutral values."""


class PromptGroup(NamedTuple):
    """All prompts about one video."""

    sample: Sample
    """The sample of the first question, with the video and its side-channels."""
    prompts: list[list[int]]
    """Token ids of every prompt, with VIDEO_TOKEN_ID at every visual position."""


class Decoding(NamedTuple):
    """Settings of greedy decoding. The manifest of `pave eval` stores them under these names."""

    max_new_tokens: int
    end: list[int]
    """Tokens that end an answer."""
    repetition_penalty: float
    start: int | None
    """A token that the penalty counts as present before the answer, as the official code does."""


class PrefixCache(NamedTuple):
    """State of the LLM after the common beginning of each video's prompts."""

    key_values: DynamicCache
    mask: Tensor
    """bool[G,P], padded at the left."""
    visual_tokens: Tensor
    """float[G*N,D], of all videos."""
    next_visual: Tensor
    """int[G], the first row of `visual_tokens` that a video's beginning did not use."""


class Suffix(NamedTuple):
    """The part of a prompt after the common beginning."""

    video: int
    ids: list[int]
    position_ids: Tensor
    """int[A,L]"""


def greedy_decoding(model: PatchedModel, max_new_tokens: int) -> Decoding:
    """Read the base's generation config. Raises UserError for a setting that is not implemented here."""
    config = model.base.hf.generation_config
    for name, neutral in NEUTRAL_SETTINGS.items():
        if (value := getattr(config, name, None)) not in (None, neutral):
            raise UserError(
                f"generation_config.json of the base has {name}={value}, which is not implemented here; remove it"
            )

    end = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    return Decoding(max_new_tokens, end, config.repetition_penalty or 1.0, config.bos_token_id)


@torch.no_grad()
def answers(
    model: PatchedModel, groups: Sequence[PromptGroup], decoding: Decoding, batch_size: int
) -> list[list[list[int]]]:
    """Generate the token ids of each answer, by group and prompt, without the end token; `batch_size` prompts at once.

    The answers equal those of `PatchedModel.generate` for one prompt at a time.
    """
    position_ids = [[_position_ids(model, group.sample, prompt) for prompt in group.prompts] for group in groups]
    lengths = [_common_length(group.prompts) for group in groups]
    prefix = prefill(model, groups, lengths, [positions[0] for positions in position_ids])

    suffixes = [
        Suffix(video, prompt[length:], positions[:, length:])
        for video, (group, length) in enumerate(zip(groups, lengths))
        for prompt, positions in zip(group.prompts, position_ids[video])
    ]
    new_tokens: list[list[int]] = []
    for i in range(0, len(suffixes), batch_size):
        new_tokens += decode(model, prefix, suffixes[i : i + batch_size], decoding)

    remaining = iter(new_tokens)
    return [[next(remaining) for _ in group.prompts] for group in groups]


def _common_length(prompts: Sequence[Sequence[int]]) -> int:
    """Number of tokens that all prompts begin with.

    It is at most one less than the shortest prompt has: the LLM's output at a prompt's last token is the first token
    of the answer, so `decode` must read at least that one.
    """
    common = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*prompts))
    return min(sum(1 for _ in common), min(map(len, prompts)) - 1)


def _position_ids(model: PatchedModel, sample: Sample, prompt: list[int]) -> Tensor:
    """int[A,L] of one prompt: 0, 1, 2, ..., unless its base has positions of its own."""
    ids = torch.tensor([prompt])
    pixels = None if sample.pixels is None else sample.pixels[None]
    seconds = None if sample.frame_seconds is None else [sample.frame_seconds]

    position_ids = model.position_ids(ids, torch.ones_like(ids), pixels, seconds)
    return torch.arange(len(prompt))[None] if position_ids is None else position_ids[:, 0]


def _stack_positions(rows: Sequence[Tensor]) -> Tensor:
    """Pad int[A,L] of each row at the left -> int[A,R,L], or int[R,L] where A is 1."""
    padded = pad_sequence([row.T for row in rows], batch_first=True, padding_side="left").permute(2, 0, 1)
    return padded[0] if len(padded) == 1 else padded


def prefill(
    model: PatchedModel, groups: Sequence[PromptGroup], lengths: Sequence[int], position_ids: Sequence[Tensor]
) -> PrefixCache:
    """Encode the videos and let the LLM read the first `lengths` tokens of each group's prompts.

    `position_ids` int[A,L] are those of one whole prompt of each group.
    """
    samples = [
        group.sample._replace(ids=group.prompts[0][:length], labels=[]) for group, length in zip(groups, lengths)
    ]
    batch = collate(samples, model.base.tokenizer.pad_token_id, left=True)
    batch = to_device(batch, next(model.parameters()).device)

    visual = model.fuse(batch["pixels"], batch["sides"], batch["frame_seconds"], batch.get("prompt_ids"))
    first = torch.arange(len(visual), device=visual.device) * visual.shape[1]
    visual = visual.flatten(0, 1)

    cache = DynamicCache()
    embeds = model.scatter_visual_tokens(batch["ids"], visual, first)
    positions = _stack_positions([row[:, :length] for row, length in zip(position_ids, lengths)])
    llm_step(model, embeds, batch["mask"], positions.to(visual.device), cache)
    return PrefixCache(cache, batch["mask"], visual, first + (batch["ids"] == VIDEO_TOKEN_ID).sum(1))


def decode(model: PatchedModel, prefix: PrefixCache, suffixes: Sequence[Suffix], decoding: Decoding) -> list[list[int]]:
    """Answer the prompts of one batch greedily, token by token."""
    device = prefix.mask.device
    pad_id = model.base.tokenizer.pad_token_id
    end_ids = torch.tensor(decoding.end, device=device)
    videos = torch.tensor([suffix.video for suffix in suffixes], device=device)

    # A copy: the cache grows with the answers, and other batches continue from the same beginnings.
    cache = DynamicCache()
    for i, layer in enumerate(prefix.key_values.layers):
        cache.update(layer.keys[videos], layer.values[videos], i)

    ids = pad_rows([suffix.ids for suffix in suffixes], pad_id, left=True).to(device)
    is_token = pad_rows([[1] * len(suffix.ids) for suffix in suffixes], 0, left=True).bool().to(device)
    mask = torch.cat([prefix.mask[videos], is_token], 1)
    positions = _stack_positions([suffix.position_ids for suffix in suffixes]).to(device)
    embeds = model.scatter_visual_tokens(ids, prefix.visual_tokens, prefix.next_visual[videos])

    # Quirk: the penalty also counts the start token, which the model never reads, as in the official code.
    penalised_ids = ids.new_full((len(suffixes), 0 if decoding.start is None else 1), decoding.start or 0)
    new = ids[:, :0]
    is_running = mask.new_ones(len(suffixes))
    while True:
        logits = model.base.lm_head(llm_step(model, embeds, mask, positions, cache)).float()
        logits = _penalise(logits, torch.cat([penalised_ids, new], 1), decoding.repetition_penalty)
        token = logits.argmax(-1).masked_fill(~is_running, pad_id)

        new = torch.cat([new, token[:, None]], 1)
        is_running &= ~torch.isin(token, end_ids)
        if new.shape[1] == decoding.max_new_tokens or not is_running.any():
            return [_until_end(row, decoding.end) for row in new.tolist()]

        mask = torch.cat([mask, mask.new_ones(len(suffixes), 1)], 1)
        positions = positions[..., -1:] + 1
        embeds = model.base.hf.get_input_embeddings()(token[:, None])


def llm_step(model: PatchedModel, embeds: Tensor, mask: Tensor, position_ids: Tensor, cache: DynamicCache) -> Tensor:
    """Let the LLM read float[R,L,D] after the tokens in the cache, which grows -> its last hidden state float[R,D]."""
    return model.base.llm(
        inputs_embeds=embeds, attention_mask=mask, position_ids=position_ids, past_key_values=cache, use_cache=True
    ).last_hidden_state[:, -1]


def _penalise(logits: Tensor, ids: Tensor, penalty: float) -> Tensor:
    """Make the tokens int[R,n] less likely in the logits float[R,V]."""
    score = logits.gather(1, ids)
    return logits.scatter(1, ids, torch.where(score < 0, score * penalty, score / penalty))


def _until_end(tokens: list[int], end: Sequence[int]) -> list[int]:
    """The tokens before the first end token."""
    return list(takewhile(lambda token: token not in end, tokens))
