"""What the multiple-choice benchmarks share: words of their prompts, and what guessing reaches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

SELECT_INSTRUCTION = (
    "Select the best answer to the following multiple-choice question based on the video and the subtitles. "
    "Respond with only the letter (A, B, C, or D) of the correct option."
)
LETTER_INSTRUCTION = "Answer with the option's letter from the given choices directly."


def guessing_scores(metrics: Iterable[str], option_counts: Sequence[int]) -> dict[str, float]:
    """What guessing one of the options of each question reaches, the same for each metric; of no question, nothing."""
    if not option_counts:
        return {}
    expected = sum(1 / count for count in option_counts) / len(option_counts)
    return dict.fromkeys(metrics, expected)
