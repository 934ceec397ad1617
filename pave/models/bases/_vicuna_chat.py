"""The chat template of the Vicuna bases, and which of its tokens are supervised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from pave.models.base import EncodedChat, History, Labels
from pave.models.bases._qwen_chat import TAG
from pave.types import IGNORE_INDEX, VIDEO_TOKEN_ID, UserError

# Quirk: the published code asks as a curious human, but trained as a curious user.
SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
OPENING = f"{SYSTEM} USER: {TAG}\n"
END = "</s>"


class Segment(NamedTuple):
    """A piece of a conversation."""

    text: str
    supervised: bool


def segments(question: str, history: History = (), answer: str | None = None, opening: str = OPENING) -> list[Segment]:
    """Pieces of a conversation about one video, which stands before the first question; no answer leaves it open."""
    pieces = [Segment(opening, False)]
    for i, (user_text, assistant_text) in enumerate([*history, (question, answer)]):
        pieces.append(Segment(f"{'USER: ' if i else ''}{user_text} ASSISTANT:", False))
        if assistant_text is not None:
            pieces.append(Segment(f" {assistant_text}{END}", True))
    return pieces


def refuse_official_labels(labels: Labels) -> None:
    """Raise UserError for the labels that the official code of PAVE has only for LLaVA-OneVision."""
    if labels == "official":
        raise UserError(
            "data.labels=official is for LLaVA-OneVision, on which the official code trained; set data.labels=answers"
        )


def encode(
    tokenizer: PreTrainedTokenizerBase, conversation: Sequence[Segment], tag_is_token: bool, tag: str = TAG
) -> EncodedChat:
    """Encode a conversation as token ids and labels.

    `tag_is_token`: the tokenizer knows the tag of the video; else the pieces around it are tokenised one by one.
    """
    text = "".join(segment.text for segment in conversation)
    is_supervised = [segment.supervised for segment in conversation for _ in segment.text]

    ids, labels = [tokenizer.bos_token_id], [IGNORE_INDEX]
    start = 0
    for i, piece in enumerate([text] if tag_is_token else text.split(tag)):
        if i:
            ids.append(VIDEO_TOKEN_ID)
            labels.append(IGNORE_INDEX)
            start += len(tag)
        tokens = tokenizer(piece, add_special_tokens=False, return_offsets_mapping=True)
        ids += tokens.input_ids
        for token, (_, end) in zip(tokens.input_ids, tokens.offset_mapping):
            # A token belongs where its last character stands; one that a tokenizer puts before all text has none.
            last_character = start + max(end - 1, 0)
            labels.append(token if is_supervised[last_character] else IGNORE_INDEX)
        start += len(piece)

    if tag_is_token:
        tag_id = tokenizer.convert_tokens_to_ids(tag)
        ids = [VIDEO_TOKEN_ID if token == tag_id else token for token in ids]
    return EncodedChat(ids, labels)
