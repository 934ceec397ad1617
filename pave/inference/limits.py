"""Limits on what one request may ask for, and the error of a request that is refused."""

from __future__ import annotations

from dataclasses import dataclass

from pave.types import UserError

MEGABYTE = 1 << 20


class RequestRefused(UserError):
    """A request that is refused, with its HTTP status and the seconds to wait before the next try."""

    def __init__(self, status: int, text: str, retry_after: int | None = None) -> None:
        super().__init__(status, text, retry_after)
        self.status, self.text, self.retry_after = status, text, retry_after

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Limits:
    """Limits on one request."""

    max_megabytes: int = 100
    """Size of all its files together, and of the unpacked files of a zip."""
    max_seconds: float = 600
    """Length of a video or sound track."""
    max_pixels: int = 3840 * 2160
    """Size of a frame or picture."""
    max_new_tokens: int = 512
    """Length of an answer."""
    max_characters: int = 20_000
    """Length of the question and the history together."""
    upload_seconds: float = 120
    """Time in which the whole request must arrive."""
    decode_seconds: float = 120
    """Time that decoding its files may take."""
