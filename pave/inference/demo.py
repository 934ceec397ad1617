"""`pave demo`: one video, and questions about it, in a terminal."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from pave.config import Config
from pave.inference import provenance
from pave.inference.session import AnswerRequest, Session
from pave.models.patched_model import PatchedModel
from pave.types import UserError

log = logging.getLogger(__name__)


def answer(
    model: PatchedModel,
    config: Config,
    video: Path,
    question: str,
    features: Mapping[str, Path],
    without: frozenset[str] = frozenset(),
    max_new_tokens: int = 128,
) -> str:
    """What the model says to one question; see `talk`."""
    return answer_all(model, config, video, [question], features, without, max_new_tokens)


def answer_all(
    model: PatchedModel,
    config: Config,
    video: Path,
    questions: Sequence[str],
    features: Mapping[str, Path],
    without: frozenset[str] = frozenset(),
    max_new_tokens: int = 128,
    beside: bool = False,
) -> str:
    """A line for what the model says to each question, which follows on those before; `beside`: and the base by itself.

    Logs what the answers are based on. Side-channels come from `features`, which are feature files or media, or from
    the video, or are left out. Raises UserError for an unreadable video, a missing sound track, an unknown side.
    """
    session = Session(model, config)
    scene = session.load_video(video, features, without)
    for name, side in scene.provenance.sides.items():
        if side.absent and name not in without:
            raise UserError(f"{side.absent}; or leave it out with --without {name}")
    log.info("%s\n", provenance.as_text(scene.provenance))
    # None: with the patches, as they are configured.
    kinds: dict[str, tuple[str, ...] | None] = {"patched: ": None, "base: ": ()} if beside else {"": None}
    turns: dict[str, list[tuple[str, str]]] = {kind: [] for kind in kinds}
    lines = []
    for question in questions:
        for kind, patches in kinds.items():
            ask = AnswerRequest(question, tuple(turns[kind]), patches, max_new_tokens)
            turns[kind].append((question, session.ask(scene, ask).text))
            lines.append(kind + turns[kind][-1][1])
    return "\n".join(lines)
