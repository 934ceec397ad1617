"""The form of POST /v1/chat/completions: as OpenAI's, with a video, side-channels and patches."""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from pave.inference import provenance
from pave.inference.limits import Limits, RequestRefused
from pave.inference.server.validation import check_empty, checked, new_tokens, patches, take
from pave.inference.session import Answer, AnswerRequest

MODEL, BASE = "pave", "pave-base"
"""With its patches, and the base alone."""
NEUTRAL = {"temperature": 0, "top_p": 1, "n": 1, "frequency_penalty": 0, "presence_penalty": 0}
"""Answers are greedy: other values are refused."""
IGNORED = ("user", "metadata")
FIELDS = (
    *("messages", "model", "patches", "stream", "max_tokens", "max_completion_tokens", "video", "sides"),
    *(*NEUTRAL, *IGNORED),
)


def models() -> dict[str, Any]:
    """What GET /v1/models says."""
    return {"object": "list", "data": [{"id": name, "object": "model", "owned_by": "pave"} for name in (MODEL, BASE)]}


def parse(fields: dict[str, Any], limits: Limits) -> tuple[dict[str, AnswerRequest], bool]:
    """The question to answer, and whether to stream. Refused: not as documented."""
    *turns, question = _texts(take(fields, "messages", list, []))
    history = tuple(zip(turns[::2], turns[1::2]))
    model = take(fields, "model", str, MODEL)
    if model not in (MODEL, BASE):
        raise RequestRefused(404, f"no model '{model[:40]}'; there are '{MODEL}' and '{BASE}'")
    on = patches(fields) if model == MODEL else ()
    for name, value in NEUTRAL.items():
        if fields.pop(name, value) not in (value, None):
            raise RequestRefused(400, f"field '{name}': answers are greedy, expected {value} or nothing")
    short = take(fields, "max_tokens", int, min(128, limits.max_new_tokens))
    count = new_tokens(take(fields, "max_completion_tokens", int, short), limits)
    stream = take(fields, "stream", bool, False)
    for name in IGNORED:
        fields.pop(name, None)
    check_empty(fields, FIELDS)
    return {"answer": checked(AnswerRequest(question, history, on, count), limits)}, stream


def _texts(messages: Sequence[Any]) -> list[str]:
    """Question, answer, question, ... Refused: other turns."""
    for number, message in enumerate(messages):
        expected = ("user", "assistant")[number % 2]
        if not isinstance(message, dict) or message.get("role") != expected:
            raise RequestRefused(
                400, f"message {number + 1}: expected role '{expected}'; turns alternate, none is for the system"
            )
    if len(messages) % 2 == 0:
        raise RequestRefused(400, "messages: expected a question at the end")
    return [_text(message.get("content")) for message in messages]


def _text(content: Any) -> str:
    """The text of a message; the video in it was taken when it came."""
    if isinstance(content, str):
        return content
    parts: list[Any] = content if isinstance(content, list) else [content]
    if not all(isinstance(part, dict) and part.get("type") in ("text", "video_url") for part in parts):
        raise RequestRefused(400, "a message's content: expected text, or parts of type 'text' and 'video_url'")
    return " ".join(str(part.get("text", "")) for part in parts if part["type"] == "text")


def whole(events: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """The answer at once."""
    seen, reply = events[0][1], events[-1][1]
    count = {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.tokens}
    choice = {"index": 0, "message": {"role": "assistant", "content": reply.text}, "finish_reason": _reason(reply)}
    return {
        **_head("chat.completion", reply.patches),
        "choices": [choice],
        "usage": {**count, "total_tokens": sum(count.values())},
        "patches": reply.patches,
        "facts": provenance.as_json(seen),
    }


def _head(kind: str, patches: Collection[str] | None) -> dict[str, Any]:
    model = BASE if patches is not None and not patches else MODEL
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def _reason(reply: Answer) -> str:
    return "stop" if reply.finished else "length"


class Stream:
    """The answer as it comes, in chunks; the first has the facts."""

    def __init__(self, asks: dict[str, AnswerRequest]) -> None:
        self.head = _head("chat.completion.chunk", asks["answer"].patches)

    def lines(self, event: tuple[str, Any]) -> Iterator[dict[str, Any]]:
        """What to send of an event."""
        value = event[1]
        if isinstance(value, str):
            yield self._chunk({"content": value})
        elif isinstance(value, Answer):
            yield self._chunk({}, _reason(value))
        else:
            yield {**self._chunk({"role": "assistant", "content": ""}), "facts": provenance.as_json(value)}

    def end(self) -> Iterator[str]:
        """What to send at the end."""
        yield "[DONE]"

    def _chunk(self, delta: dict[str, str], reason: str | None = None) -> dict[str, Any]:
        return {**self.head, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
