"""Is an answer right? Rules of the published evaluators, and stricter ones of ours."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from pave.tasks.metrics.aggregate import count_answers, mean

NUMBER_WORDS = re.findall(
    r"\w+",
    "zero one two three four five six seven eight nine ten eleven twelve "
    "thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty",
)
REPLACEMENTS = {str(number): word for number, word in enumerate(NUMBER_WORDS)} | {
    "23": "twenty-three",
    "none": "zero",
    "letf": "left",
    "let": "left",
    "tehre": "there",
    "rigth": "right",
    "rght": "right",
    "behine": "behind",
    "tv": "TV",
    "chai": "chair",
    "wasing": "washing",
    "waslked": "walked",
    "oclock": "o'clock",
    "backwards": "backward",
}
"""Whole words that `clean_answer` replaces."""


def strip_answer(text: str) -> str:
    """Lower case, without a full stop and spaces at the ends."""
    return text.strip().lower().removesuffix(".").strip()


def clean_answer(text: str) -> str:
    """Clean an answer about a 3D scene as the evaluators of LEO, LLaVA-3D and PAVE do before they compare."""
    text = re.sub(" +", " ", text.lower().strip(" "))
    # Quirk: letters with accents, full stops and slashes vanish first: `1.5` becomes `fifteen`.
    text = re.sub(r"[^a-zA-Z0-9,'\s\-:]", "", text)
    text = re.sub(r"o' +clock", "o'clock", text)
    text = re.sub(r"\b\w+\b", lambda word: REPLACEMENTS.get(word[0], word[0]), text)
    text = re.sub(r"\b([a-z]+)[0-9]\b", r"\1", text)
    for article in ("a", "an", "the"):
        # Quirk: one pass, and only before a word: `the the chair` keeps one, `the` alone stays.
        text = re.sub(rf"\b{article} ([a-zA-Z]+)", r"\1", text)
    return text


def exact_match(prediction: str, references: Iterable[str]) -> bool:
    """Whether a cleaned prediction is one of the cleaned references."""
    return prediction in set(references)


def refined_match(prediction: str, references: Iterable[str]) -> bool:
    """Whether a prediction equals, contains or is contained in a reference, without spaces."""
    # Quirk: an empty prediction is inside every reference, so it is right; scores count `empty` beside it.
    joined = "".join(prediction.split())
    joined_references = ["".join(reference.split()) for reference in references]
    return any(joined in reference or reference in joined for reference in joined_references)


def leo_match(prediction: str, references: Iterable[str]) -> bool:
    """Exact match as LEO counts it: the first reference with a refined match decides."""
    decisive = next((reference for reference in references if refined_match(prediction, [reference])), None)
    return prediction == decisive


def scene_scores(cleaned: Sequence[tuple[Sequence[str], str | None]], groups: Sequence[str] = ()) -> dict[str, float]:
    """EM and EM_refined of cleaned (references, prediction or None), over all and in each group, with counts."""
    exact = [text is not None and exact_match(text, references) for references, text in cleaned]
    refined = [text is not None and refined_match(text, references) for references, text in cleaned]
    return {
        **mean("EM", exact, groups),
        **mean("EM_refined", refined, groups),
        **count_answers([text for _, text in cleaned]),
    }
