"""Remove the tag that stands for a video in texts of data sets: where the video stands is for the base to decide."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pave.types import UserError

TAGS = ("<video>", "<image>")
"""Of records of the LLaVA family: one in a conversation, at the front or the end of a turn."""
VIDEO_MARK = re.compile(r"<video>|<image>|<\|(?:video|image|vision)_(?:pad|start|end)\|>|<IMG_CONTEXT>")
"""The tags, and the tokens of the bases' own tokenizers that stand for a video."""


def remove_video_tag(texts: Sequence[str], question: str) -> list[str]:
    """Remove the one tag from the texts of a conversation; its text is stripped, as by the official loader.

    Raises UserError, which names `question`, for texts that would make a further video.
    """
    marks = [mark for text in texts for mark in VIDEO_MARK.findall(text)]
    if not marks:
        return list(texts)

    if len(marks) > 1 or marks[0] not in TAGS:
        name = " ".join(question.split())[:60]
        raise UserError(
            f"question '{name}': its text holds {' '.join(marks[:4])}, expected at most one <video> or <image>, for "
            "its only video; take out the others"
        )
    return [text.replace(marks[0], "").strip() if marks[0] in text else text for text in texts]
