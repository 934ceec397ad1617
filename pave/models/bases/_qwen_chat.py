"""The chat template of the Qwen2 bases, and which of its tokens are supervised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from pave.types import IGNORE, VIDEO

TAG = "<video>"
SYSTEM = "You are a helpful assistant."


class Turn(NamedTuple):
    """One turn of a conversation; an assistant's None leaves the header open, for generation."""

    role: Literal["user", "assistant"]
    text: str | None


class Encoded(NamedTuple):
    """Token ids with VIDEO in place of the visual tokens, and labels with IGNORE where nothing is learnt."""

    ids: list[int]
    labels: list[int]
    guide: list[int] | None = None
    """Token ids for a base that sees a video differently for each question."""


def turns(
    question: str, history: Sequence[tuple[str, str]] = (), answer: str | None = None, video: str = f"{TAG}\n"
) -> list[Turn]:
    """A conversation about one video, which stands before the first question."""
    pairs = [*history, (question, answer)]
    first, *rest = [turn for asked, said in pairs for turn in (Turn("user", asked), Turn("assistant", said))]
    return [first._replace(text=f"{video}{first.text}"), *rest]


def tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text, with VIDEO for every <video> tag; each piece between tags is tokenised by itself."""
    first, *rest = (tokenizer(piece, add_special_tokens=False).input_ids for piece in text.split(TAG))
    return first + [token for piece in rest for token in (VIDEO, *piece)]


def encode(
    tokenizer: PreTrainedTokenizerBase,
    conversation: Sequence[Turn],
    mask: Literal["answers", "official"] = "answers",
    system: str | None = SYSTEM,
) -> Encoded:
    """Token ids and labels. `answers` supervises what the model has to say, `release` what the published code did."""
    if conversation[0].role == "assistant":
        conversation = conversation[1:]
    ids = [] if system is None else tokenize(tokenizer, f"<|im_start|>system\n{system}<|im_end|>\n")
    labels = [IGNORE] * len(ids)
    for role, text in conversation:
        header = tokenize(tokenizer, f"<|im_start|>{role}\n")
        said = [] if text is None else tokenize(tokenizer, f"{text}<|im_end|>\n")
        ids += header + said
        head_labels = header if role == "assistant" and mask == "official" else [IGNORE] * len(header)
        labels += head_labels + (said if role == "assistant" else [IGNORE] * len(said))
    if mask == "official":
        # Quirk: the released mask also supervises every newline and turn mark, in questions and system text too.
        marks = {tokenizer.convert_tokens_to_ids(t) for t in ("<|im_start|>", "<|im_end|>")} | {198}
        labels = [i if i in marks else label for i, label in zip(ids, labels)]
    return Encoded(ids, [IGNORE if label == VIDEO else label for label in labels])
