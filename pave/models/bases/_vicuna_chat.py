"""The chat template of the Vicuna bases, and which of its tokens are supervised."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoTokenizer

from pave.models.bases._qwen_chat import TAG, Encoded
from pave.types import IGNORE, VIDEO, UserError

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
    learnt: bool


def segments(
    question: str, history: Sequence[tuple[str, str]] = (), answer: str | None = None, opening: str = OPENING
) -> list[Segment]:
    """A conversation about one video, which stands before the first question; answer None leaves it open."""
    pieces = [Segment(opening, False)]
    for i, (asked, said) in enumerate([*history, (question, answer)]):
        pieces.append(Segment(f"{'USER: ' if i else ''}{asked} ASSISTANT:", False))
        if said is not None:
            pieces.append(Segment(f" {said}{END}", True))
    return pieces


def encode(tokenizer: Any, conversation: Sequence[Segment], whole: bool, tag: str = TAG) -> Encoded:
    """Token ids and labels. `whole`: the tokenizer knows the tag; else what stands around it is tokenised by itself."""
    text = "".join(piece.text for piece in conversation)
    learnt = [piece.learnt for piece in conversation for _ in piece.text]
    ids, labels = [tokenizer.bos_token_id], [IGNORE]
    at = 0
    for i, part in enumerate([text] if whole else text.split(tag)):
        if i:
            ids, labels, at = [*ids, VIDEO], [*labels, IGNORE], at + len(tag)
        found = tokenizer(part, add_special_tokens=False, return_offsets_mapping=True)
        ids += found.input_ids
        # A token belongs where its last character stands; one that a tokenizer puts before all text has none.
        ends = [max(end - 1, 0) for _, end in found.offset_mapping]
        labels += [token if learnt[at + end] else IGNORE for token, end in zip(found.input_ids, ends)]
        at += len(part)
    known = tokenizer.convert_tokens_to_ids(tag) if whole else VIDEO
    return Encoded([VIDEO if token == known else token for token in ids], labels)


def tokenizer(folder: Path, tag: int | None = None) -> Any:
    """The tokenizer of a folder, which pads with <unk> if with nothing else. UserError: `tag` is not the video."""
    made = AutoTokenizer.from_pretrained(folder)
    if tag is not None and made.convert_tokens_to_ids(TAG) != tag:
        raise UserError(
            f"{folder}: its tokenizer has no {TAG} of id {tag}, as config.json says; copy all tokenizer files"
        )
    if made.pad_token_id is None:
        made.pad_token = made.unk_token
    return made
