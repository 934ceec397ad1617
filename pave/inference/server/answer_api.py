"""The form of POST /v1/answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from pave.inference import provenance
from pave.inference.limits import Limits, RequestRefused
from pave.inference.provenance import Provenance
from pave.inference.server.validation import check_empty, checked, new_tokens, patches, take
from pave.inference.session import Answer, AnswerRequest

FIELDS = ("question", "history", "patches", "base", "stream", "max_new_tokens", "video", "sides")


def parse(fields: dict[str, Any], limits: Limits) -> tuple[dict[str, AnswerRequest], bool]:
    """The questions to answer, and whether to stream. Refused: not as documented."""
    history = take(fields, "history", list, [])
    for turn in history:
        if not isinstance(turn, list) or len(turn) != 2 or not all(isinstance(text, str) for text in turn):
            raise RequestRefused(400, "field 'history': expected a list of [question, answer]")
    turns = tuple((question, answer) for question, answer in history)
    count = new_tokens(take(fields, "max_new_tokens", int, min(128, limits.max_new_tokens)), limits)
    ask = checked(AnswerRequest(take(fields, "question", str, ""), turns, patches(fields), count), limits)
    asks = {"answer": ask}
    if take(fields, "base", bool, False):
        asks["base"] = dataclasses.replace(ask, patches=())
    stream = take(fields, "stream", bool, False)
    check_empty(fields, FIELDS)
    return asks, stream


def whole(events: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """The answer at once."""
    return {name: _value(value) for name, value in events if not isinstance(value, str)}


def _value(value: Provenance | Answer) -> dict[str, Any]:
    return provenance.as_json(value) if isinstance(value, Provenance) else value._asdict()


class Stream(NamedTuple):
    """The answer as it comes: the facts, pieces of text, each whole reply."""

    asks: dict[str, AnswerRequest]

    def lines(self, event: tuple[str, Any]) -> Iterator[dict[str, Any]]:
        """What to send of an event."""
        name, value = event
        yield {name: {"piece": value} if isinstance(value, str) else _value(value)}

    def end(self) -> Iterator[dict[str, Any]]:
        """What to send at the end."""
        yield {"done": list(self.asks)}
