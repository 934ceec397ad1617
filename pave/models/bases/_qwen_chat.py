"""The chat template of the Qwen2 bases, and which of its tokens are supervised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from pave.models.base import EncodedChat, History, Labels
from pave.types import IGNORE_INDEX, VIDEO_TOKEN_ID

TAG = "<video>"
SYSTEM = "You are a helpful assistant."
NEWLINE_ID = 198


class Turn(NamedTuple):
    """One turn of a conversation; an assistant's None leaves its header open, for generation."""

    role: Literal["user", "assistant"]
    text: str | None


def turns(question: str, history: History = (), answer: str | None = None, video: str = f"{TAG}\n") -> list[Turn]:
    """Turns of a conversation about one video, which stands before the first question."""
    conversation: list[Turn] = []
    for user_text, assistant_text in [*history, (question, answer)]:
        conversation += [Turn("user", user_text), Turn("assistant", assistant_text)]
    first_question = conversation[0]
    return [first_question._replace(text=f"{video}{first_question.text}"), *conversation[1:]]


def tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text, with VIDEO_TOKEN_ID for each tag; the pieces between tags are tokenised one by one."""
    ids: list[int] = []
    for i, piece in enumerate(text.split(TAG)):
        if i:
            ids.append(VIDEO_TOKEN_ID)
        ids += tokenizer(piece, add_special_tokens=False).input_ids
    return ids


def encode(
    tokenizer: PreTrainedTokenizerBase,
    conversation: Sequence[Turn],
    supervised: Labels = "answers",
    system: str | None = SYSTEM,
) -> EncodedChat:
    """Encode a conversation as token ids, and as labels of what is `supervised`."""
    if conversation[0].role == "assistant":
        conversation = conversation[1:]

    ids = [] if system is None else tokenize(tokenizer, f"<|im_start|>system\n{system}<|im_end|>\n")
    labels = [IGNORE_INDEX] * len(ids)
    for role, text in conversation:
        header = tokenize(tokenizer, f"<|im_start|>{role}\n")
        content = [] if text is None else tokenize(tokenizer, f"{text}<|im_end|>\n")
        ids += header + content

        is_answer = role == "assistant"
        labels += header if is_answer and supervised == "official" else [IGNORE_INDEX] * len(header)
        labels += content if is_answer else [IGNORE_INDEX] * len(content)

    if supervised == "official":
        # Quirk: the official labels hold every newline and turn mark too, in questions and system text.
        marks = {*tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"]), NEWLINE_ID}
        labels = [token if token in marks else label for token, label in zip(ids, labels)]
    return EncodedChat(ids, [IGNORE_INDEX if label == VIDEO_TOKEN_ID else label for label in labels])
