"""Requests and responses of POST /v1/answer."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from pave.inference import provenance
from pave.inference.limits import Limits, RequestRefused
from pave.inference.provenance import Provenance
from pave.inference.server.job_queue import Event
from pave.inference.server.validation import Fields, check_empty, check_text, take, take_max_new_tokens, take_patches
from pave.inference.session import Answer, AnswerRequest

FIELDS = ("question", "history", "patches", "base", "stream", "max_new_tokens", "video", "sides")


def parse(fields: Fields, limits: Limits) -> tuple[dict[str, AnswerRequest], bool]:
    """Read the questions, named `answer` and `base`, and whether to stream. Raises RequestRefused."""
    history = take(fields, "history", list, [])
    for turn in history:
        if not isinstance(turn, list) or len(turn) != 2 or not all(isinstance(text, str) for text in turn):
            raise RequestRefused(400, "field 'history': expected a list of [question, answer]")

    request = AnswerRequest(
        question=take(fields, "question", str, ""),
        history=tuple((question, answer) for question, answer in history),
        patches=take_patches(fields),
        max_new_tokens=take_max_new_tokens(fields, ["max_new_tokens"], limits),
    )
    check_text(request, limits)
    requests = {"answer": request}
    if take(fields, "base", bool, False):
        requests["base"] = dataclasses.replace(request, patches=())

    is_stream = take(fields, "stream", bool, False)
    check_empty(fields, FIELDS)
    return requests, is_stream


def response(events: Sequence[Event]) -> dict[str, object]:
    """The body of a response that is not streamed."""
    return {name: _as_json(value) for name, value in events if not isinstance(value, str)}


def _as_json(value: Provenance | Answer) -> dict[str, object]:
    return provenance.as_json(value) if isinstance(value, Provenance) else value._asdict()


class AnswerStream:
    """A streamed response: the provenance, pieces of text, each whole answer."""

    def __init__(self, requests: dict[str, AnswerRequest]) -> None:
        self.names = list(requests)

    def data(self, event: Event) -> dict[str, object]:
        """The data of one event."""
        name, value = event
        return {name: {"piece": value} if isinstance(value, str) else _as_json(value)}

    def end(self) -> str:
        """The data that ends the stream."""
        return json.dumps({"done": self.names})
