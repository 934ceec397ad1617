"""Is an answer right? Rules of the published evaluators, and stricter ones of ours."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
NUMBERS += ["thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"]
WORDS = {str(number): word for number, word in enumerate(NUMBERS)} | {
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
"""What `clean` puts in the place of whole words."""


def plain(text: str) -> str:
    """Lower case, without a full stop and spaces at the ends."""
    return text.strip().lower().removesuffix(".").strip()


def clean(text: str) -> str:
    """An answer about a 3D scene as the evaluators of LEO, LLaVA-3D and the release compare it."""
    text = re.sub(" +", " ", text.lower().strip(" "))
    # Quirk: letters with accents, full stops and slashes vanish first: `1.5` becomes `fifteen`.
    text = re.sub(r"[^a-zA-Z0-9,'\s\-:]", "", text)
    text = re.sub(r"o' +clock", "o'clock", text)
    text = re.sub(r"\b\w+\b", lambda word: WORDS.get(word[0], word[0]), text)
    text = re.sub(r"\b([a-z]+)[0-9]\b", r"\1", text)
    for article in ("a", "an", "the"):
        # Quirk: one pass, and only before a word: `the the chair` keeps one, `the` alone stays.
        text = re.sub(rf"\b{article} ([a-zA-Z]+)", r"\1", text)
    return text


def exact(prediction: str, references: Iterable[str]) -> bool:
    """Is a cleaned prediction one of the cleaned references?"""
    return prediction in set(references)


def refined(prediction: str, references: Iterable[str]) -> bool:
    """Exact, or one contains the other when spaces are taken out."""
    # Quirk: an empty prediction is inside every reference, so it is right; scores count `empty` beside it.
    bare = "".join(prediction.split())
    return any(bare in other or other in bare for other in ("".join(r.split()) for r in references))


def scene_scores(cleaned: Sequence[tuple[Sequence[str], str | None]], groups: Sequence[str] = ()) -> dict[str, float]:
    """EM and EM_refined of cleaned (references, prediction or None), over all and in each group, with counts."""
    hits = [p is not None and exact(p, references) for references, p in cleaned]
    near = [p is not None and refined(p, references) for references, p in cleaned]
    return share("EM", hits, groups) | share("EM_refined", near, groups) | counts([p for _, p in cleaned])


def share(name: str, right: Sequence[bool], groups: Sequence[str] = ()) -> dict[str, float]:
    """How many of all are right, as `name`, and of each named group, as `name group`; of none, nothing."""
    gathered: dict[str, list[bool]] = {name: list(right)} if right else {}
    for group, value in sorted(zip(groups, right)):
        if group:
            gathered.setdefault(f"{name} {group}", []).append(value)
    return {name: sum(values) / len(values) for name, values in gathered.items()}


def counts(predictions: Sequence[str | None]) -> dict[str, float]:
    """How many questions there are, how many without a prediction, how many with an empty one."""
    missing = sum(p is None for p in predictions)
    return {"n": len(predictions), "missing": missing, "empty": sum(p == "" for p in predictions)}
