"""Clients of a running server, as several test files use them."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any, NamedTuple

HOME = "http://127.0.0.1"
QUESTION = "Which sound is heard? Answer with one word."
WAITING = 8
TOKENS = 8


class Served(NamedTuple):
    """A running server."""

    client: Any
    folder: Path
    """Of the server's files."""
    ckpt: Path
    video: Path

    def ask(self, path: str = "/v1/answer", **fields: Any) -> Any:
        """A JSON request, without a video that of the tiny world."""
        fields = {"question": QUESTION, "video": data_url(self.video), "max_new_tokens": TOKENS, **fields}
        return self.client.post(path, json=fields)

    def chat(self, **fields: Any) -> Any:
        """The same question as OpenAI's clients ask it."""
        content = [
            {"type": "video_url", "video_url": {"url": data_url(self.video)}},
            {"type": "text", "text": QUESTION},
        ]
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": TOKENS, **fields}
        return self.client.post("/v1/chat/completions", json=body)

    def form(self, files: dict[str, Any], **fields: Any) -> Any:
        """A multipart request."""
        return self.client.post("/v1/answer", files=files, data={"question": QUESTION, **fields})

    def left(self) -> list[Path]:
        """Files of requests."""
        return list((self.folder / "requests").rglob("*"))


def data_url(file: Path, kind: str = "video/mp4") -> str:
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"


def events(response: Any) -> list[Any]:
    """Of a stream, but for [DONE]."""
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def error(response: Any, status: int) -> str:
    assert response.status_code == status, response.text
    message = response.json()["error"]["message"]
    assert "/pave-serve-" not in message
    return message
