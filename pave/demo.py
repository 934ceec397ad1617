"""`pave demo`: one video, one question, one answer."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from pave.config import Config
from pave.model import Pave
from pave.serve import facts
from pave.serve.session import Ask, Session
from pave.types import UserError

log = logging.getLogger(__name__)


def answer(
    model: Pave,
    config: Config,
    video: Path,
    question: str,
    features: Mapping[str, Path],
    without: frozenset[str] = frozenset(),
    max_new_tokens: int = 128,
) -> str:
    """What the model says; logs what the answer is based on.

    Side-channels come from `features`, which are feature files or media, or from the video, or are left out.
    Raises UserError for an unreadable video, a missing sound track, an unknown side.
    """
    session = Session(model, config)
    scene = session.see(video, features, without)
    for name, side in scene.facts.sides.items():
        if side.absent and name not in without:
            raise UserError(f"{side.absent}; or leave it out with --without {name}")
    log.info("%s\n", facts.text(scene.facts))
    return session.ask(scene, Ask(question, max_new_tokens=max_new_tokens)).text
