"""Requests and responses of POST /v1/chat/completions: OpenAI's, with a video, side-channels and patches."""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Sequence

from pave.inference import provenance
from pave.inference.limits import Limits, RequestRefused
from pave.inference.provenance import Provenance
from pave.inference.server.job_queue import Event
from pave.inference.server.validation import Fields, check_empty, check_text, take, take_max_new_tokens, take_patches
from pave.inference.session import Answer, AnswerRequest

MODEL, BASE = "pave", "pave-base"
"""The model with its patches, and the base alone."""
GREEDY_VALUES = {"temperature": 0, "top_p": 1, "n": 1, "frequency_penalty": 0, "presence_penalty": 0}
"""Values that fit greedy answers; others are refused."""
IGNORED = ("user", "metadata")
TOKEN_FIELDS = ("max_tokens", "max_completion_tokens")
FIELDS = ("messages", "model", "patches", "stream", "video", "sides", *TOKEN_FIELDS, *GREEDY_VALUES, *IGNORED)


def models() -> dict[str, object]:
    """The body of GET /v1/models."""
    return {"object": "list", "data": [{"id": name, "object": "model", "owned_by": "pave"} for name in (MODEL, BASE)]}


def parse(fields: Fields, limits: Limits) -> tuple[dict[str, AnswerRequest], bool]:
    """Read the question, named `answer`, and whether to stream. Raises RequestRefused."""
    *texts, question = _texts(take(fields, "messages", list, []))
    model = take(fields, "model", str, MODEL)
    if model not in (MODEL, BASE):
        raise RequestRefused(404, f"no model '{model[:40]}'; there are '{MODEL}' and '{BASE}'")

    patches = take_patches(fields) if model == MODEL else ()
    for name, value in GREEDY_VALUES.items():
        if fields.pop(name, value) not in (value, None):
            raise RequestRefused(400, f"field '{name}': answers are greedy, expected {value} or nothing")

    max_new_tokens = take_max_new_tokens(fields, TOKEN_FIELDS, limits)
    is_stream = take(fields, "stream", bool, False)
    for name in IGNORED:
        fields.pop(name, None)
    check_empty(fields, FIELDS)

    request = AnswerRequest(question, tuple(zip(texts[::2], texts[1::2])), patches, max_new_tokens)
    check_text(request, limits)
    return {"answer": request}, is_stream


def _texts(messages: Sequence[object]) -> list[str]:
    """Question, answer, question, ... Raises RequestRefused for other roles."""
    texts = []
    for number, message in enumerate(messages):
        role = ("user", "assistant")[number % 2]
        if not isinstance(message, dict) or message.get("role") != role:
            raise RequestRefused(
                400, f"message {number + 1}: expected role '{role}'; turns alternate, none is for the system"
            )
        texts.append(message.get("content"))
    if len(messages) % 2 == 0:
        raise RequestRefused(400, "messages: expected a question at the end")
    return [_text(content) for content in texts]


def _text(content: object) -> str:
    """The text of a message; its video was stored when the request came."""
    if isinstance(content, str):
        return content
    contents = content if isinstance(content, list) else [content]
    parts = [part for part in contents if isinstance(part, dict) and part.get("type") in ("text", "video_url")]
    if len(parts) < len(contents):
        raise RequestRefused(400, "a message's content: expected text, or parts of type 'text' and 'video_url'")
    return " ".join(str(part.get("text", "")) for part in parts if part["type"] == "text")


def response(events: Sequence[Event]) -> dict[str, object]:
    """The body of a response that is not streamed."""
    (_, facts), (_, answer) = events[0], events[-1]
    assert isinstance(facts, Provenance)
    assert isinstance(answer, Answer)

    message = {"role": "assistant", "content": answer.text}
    return {
        **_head("chat.completion", answer.patches),
        "choices": [{"index": 0, "message": message, "finish_reason": _finish_reason(answer)}],
        "usage": {
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.tokens,
            "total_tokens": answer.prompt_tokens + answer.tokens,
        },
        "patches": answer.patches,
        "facts": provenance.as_json(facts),
    }


def _head(kind: str, patches: Collection[str] | None) -> dict[str, object]:
    model = BASE if patches is not None and not patches else MODEL
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def _finish_reason(answer: Answer) -> str:
    return "stop" if answer.finished else "length"


class ChunkStream:
    """A streamed response, in chunks; the first has the provenance."""

    def __init__(self, requests: dict[str, AnswerRequest]) -> None:
        self.head = _head("chat.completion.chunk", requests["answer"].patches)

    def data(self, event: Event) -> dict[str, object]:
        """The chunk of one event."""
        _, value = event
        if isinstance(value, str):
            return self._chunk({"content": value})
        if isinstance(value, Answer):
            return self._chunk({}, _finish_reason(value))
        return {**self._chunk({"role": "assistant", "content": ""}), "facts": provenance.as_json(value)}

    def end(self) -> str:
        """The mark that ends the stream."""
        return "[DONE]"

    def _chunk(self, delta: dict[str, str], finish_reason: str | None = None) -> dict[str, object]:
        return {**self.head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}
