"""A chat endpoint that speaks OpenAI's protocol: time limits, retries, and a key that is in no message and no file."""

from __future__ import annotations

import email.utils
import http.client
import json
import random
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pave import __version__
from pave.evaluation.judge_ledger import JudgeReply, JudgeRequest, RequestRefused
from pave.types import UserError

RETRY_STATUS = {408, 409, 425, 429}
"""Statuses that may pass, besides those from 500 on."""
FATAL_STATUS = {401, 402, 404, 405}
"""Statuses that every other request would meet as well."""
QUOTA_CODES = {
    "insufficient_quota",
    "credit_balance_exhausted",
    "project_spend_limit_exceeded",
    "organization_spend_limit_exceeded",
    "organization_usage_limit_exceeded",
}
"""Codes of a 429 that no waiting ends."""
MAX_BACKOFF = 60.0
"""Seconds between two tries of our own choice."""
MAX_REQUESTED_WAIT = 3600.0
"""Seconds that an endpoint may ask for."""
MAX_ANSWER_BYTES = 2**20


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another host."""

    def redirect_request(self, *arguments: object) -> None:
        return None


@dataclass(frozen=True)
class ChatEndpoint:
    """A judge behind a URL; several threads may ask at once."""

    url: str
    """With or without /chat/completions."""
    model: str
    key: str | None = field(repr=False)
    body: Mapping[str, object]
    """Further members of the request."""
    timeout: float = 60.0
    retries: int = 6
    stop: threading.Event = field(default_factory=threading.Event)
    """Once it is set, all threads that wait give up."""

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
            raise UserError(f"{self.url}: expected a URL as in https://host/v1, without a name or password in it")

    def ask(self, request: JudgeRequest) -> JudgeReply:
        """Send a request, with retries. Raises RequestRefused if only it is at fault, UserError if none can succeed."""
        failure = ""
        for attempt in range(self.retries + 1):
            wait = min(MAX_BACKOFF, 2.0**attempt) * random.uniform(0.5, 1)
            try:
                return _parse_reply(self._post(request.turns), self.model)
            except urllib.error.HTTPError as error:
                failure = f"HTTP {error.code}{_error_text(error, self.key)}"
                self._raise_if_final(error, failure)
                wait = max(wait, parse_retry_after(error.headers.get("Retry-After")))
            except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
                failure = f"{type(error).__name__}: {error}"

            if wait > MAX_REQUESTED_WAIT:
                raise UserError(f"{self.url}: {failure}; it asks to wait {wait:.0f} s, run the command again then")
            if attempt < self.retries and self.stop.wait(wait):
                break
        raise UserError(f"{self.url}: gave up after {attempt + 1} tries, the last: {failure}; the same command goes on")

    def _raise_if_final(self, error: urllib.error.HTTPError, failure: str) -> None:
        """Raises RequestRefused or UserError for a status that no retry changes."""
        if error.code == 429 and any(code in failure for code in QUOTA_CODES):
            raise UserError(f"{self.url}: {failure}; pay or raise the limit, then run it again") from error
        if error.code in RETRY_STATUS or error.code >= 500:
            return
        if error.code in FATAL_STATUS or error.code < 400:
            raise UserError(f"{self.url}: {failure}; check the address, --model and the key") from error
        raise RequestRefused(failure) from error

    def _post(self, turns: Sequence[Mapping[str, str]]) -> Any:
        """Post the turns and return the decoded answer."""
        address = urllib.parse.urlsplit(self.url)
        path = address.path.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        body = {"model": self.model, "messages": list(turns), **self.body}
        data = json.dumps({key: value for key, value in body.items() if value is not None}).encode()

        headers = {"Content-Type": "application/json", "User-Agent": f"pave/{__version__}"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(address._replace(path=path).geturl(), data, headers)
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=self.timeout) as answer:
            return json.loads(answer.read(MAX_ANSWER_BYTES))


def _parse_reply(answer: Any, model: str) -> JudgeReply:
    """Take the reply out of an answer. Raises LookupError or TypeError for another form."""
    # A model that only thought, or was cut off, gives no text: a reply that cannot be read, not an error.
    text = answer["choices"][0]["message"].get("content") or ""
    usage = answer.get("usage") or {}
    if not isinstance(text, str):
        raise TypeError(f"content is {text!r:.60}")
    name = str(answer.get("model") or model)
    return JudgeReply(text, name, usage.get("prompt_tokens"), usage.get("completion_tokens"))


def _error_text(error: urllib.error.HTTPError, key: str | None) -> str:
    """The body of an error, on one line and without the key; the body may break off."""
    try:
        body = error.read(MAX_ANSWER_BYTES).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        return ""
    if key:
        body = body.replace(key, "***")
    body = " ".join(body.split())
    return f" ({body[:400]})" if body else ""


def parse_retry_after(header: str | None) -> float:
    """Seconds to wait, from a number or a date; 0 for neither."""
    try:
        return max(0.0, float(header or 0))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(str(header)).timestamp() - time.time())
    except ValueError:
        return 0.0
