"""How much one request may ask for, and what is said to one that is not served."""

from __future__ import annotations

from dataclasses import dataclass

from pave.types import UserError

MEGA = 1 << 20


class Refused(UserError):
    """A request that is not served, with its HTTP status."""

    def __init__(self, status: int, text: str, retry_after: int | None = None) -> None:
        super().__init__(status, text, retry_after)
        self.status, self.text, self.retry_after = status, text, retry_after

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Limits:
    """How much one request may ask for."""

    megabytes: int = 100
    """Of all its files together; and of what is in a zip."""
    seconds: float = 600
    """How long a video or sound track may be."""
    pixels: int = 3840 * 2160
    """Of a frame."""
    new_tokens: int = 512
    """Of an answer."""
    characters: int = 20_000
    """Of question and history."""
    upload: float = 120
    """Seconds in which it must have arrived."""
    reading: float = 120
    """Seconds that its files may take to decode."""
