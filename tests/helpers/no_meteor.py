"""Caption scores without METEOR."""

from __future__ import annotations

import pytest

from pave.tasks.metrics import captions
from pave.types import UserError


@pytest.fixture(autouse=True)
def without_meteor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Java is there, each score would start it, for seconds."""

    def absent(items: object) -> float:
        raise UserError("not in these tests")

    monkeypatch.setattr(captions, "meteor", absent)
