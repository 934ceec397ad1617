"""What stands for a video in texts of data sets; it goes, since where the video stands is for the base to say."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pave.types import UserError

TAGS = ("<video>", "<image>")
"""Of records of the LLaVA family: one in a conversation, at the front or the end of a turn."""
MARK = re.compile(r"<video>|<image>|<\|(?:video|image|vision)_(?:pad|start|end)\|>|<IMG_CONTEXT>")
"""Tags, and what the bases' own tokenizers know as one."""


def bare(texts: Sequence[str], question: str) -> list[str]:
    """The texts of one conversation without its tag; the one that had it is stripped, as by the official loader.

    Raises UserError, which names `question`, for whatever would make a further video.
    """
    marks = [mark for text in texts for mark in MARK.findall(text)]
    if not marks:
        return list(texts)
    if len(marks) > 1 or marks[0] not in TAGS:
        name = " ".join(question.split())[:60]
        raise UserError(
            f"question '{name}': its text holds {' '.join(marks[:4])}, expected at most one <video> or <image>, for "
            "its only video; take out the others"
        )
    return [MARK.sub("", text).strip() if MARK.search(text) else text for text in texts]
