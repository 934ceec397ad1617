"""`pave demo`: questions about one video, in a terminal."""

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
    """Answer one question about a video; see `answer_all`."""
    return answer_all(model, config, video, [question], features, without, max_new_tokens)


def answer_all(
    model: PatchedModel,
    config: Config,
    video: Path,
    questions: Sequence[str],
    features: Mapping[str, Path],
    without: frozenset[str] = frozenset(),
    max_new_tokens: int = 128,
    with_base: bool = False,
) -> str:
    """Answer the questions of one conversation, a line each; `with_base` adds a line with the base's answer to each.

    A side-channel comes from its entry in `features` (feature file or media), else from the video; those in `without`
    are left out. Logs the provenance. Raises UserError for an unreadable video and a side-channel that is missing.
    """
    session = Session(model, config)
    loaded = session.load_video(video, features, without)
    for name, side in loaded.provenance.sides.items():
        if side.absent and name not in without:
            raise UserError(f"{side.absent}; or leave it out with --without {name}")
    log.info("%s\n", provenance.as_text(loaded.provenance))

    # By the label of its lines, the patches of each conversation; None: as the model is configured.
    conversations: dict[str, tuple[str, ...] | None] = {"": None}
    if with_base:
        conversations = {"patched: ": None, "base: ": ()}

    history: dict[str, list[tuple[str, str]]] = {label: [] for label in conversations}
    lines = []
    for question in questions:
        for label, patches in conversations.items():
            request = AnswerRequest(question, tuple(history[label]), patches, max_new_tokens)
            text = session.ask(loaded, request).text
            history[label].append((question, text))
            lines.append(label + text)
    return "\n".join(lines)
