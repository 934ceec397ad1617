"""Is an answer right? Rules of the published evaluators, and stricter ones of ours."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

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


def leo(prediction: str, references: Iterable[str]) -> bool:
    """Exact as LEO counts it: the first reference that is equal, contained or contains decides."""
    near = next((r for r in references if refined(prediction, [r])), None)
    return prediction == near


def scene_scores(cleaned: Sequence[tuple[Sequence[str], str | None]], groups: Sequence[str] = ()) -> dict[str, float]:
    """EM and EM_refined of cleaned (references, prediction or None), over all and in each group, with counts."""
    hits = [p is not None and exact(p, references) for references, p in cleaned]
    near = [p is not None and refined(p, references) for references, p in cleaned]
    return share("EM", hits, groups) | share("EM_refined", near, groups) | counts([p for _, p in cleaned])


APART = " | "
"""Between the names of a question's groups, where it belongs to several."""


def share(name: str, right: Sequence[bool], groups: Sequence[str] = ()) -> dict[str, float]:
    """How many of all are right, as `name`, and of each named group, as `name group`; of none, nothing.

    A question may belong to several groups, as in `short | Knowledge`.
    """
    gathered: dict[str, list[bool]] = {}
    for group, value in zip(groups, right):
        for one in dict.fromkeys(group.split(APART)):
            if one:
                gathered.setdefault(f"{name} {one}", []).append(value)
    everything = {name: list(right)} if right else {}
    return {name: sum(values) / len(values) for name, values in (everything | dict(sorted(gathered.items()))).items()}


def macro(name: str, shares: Mapping[str, float], groups: Iterable[str]) -> dict[str, float]:
    """Mean of the shares of these groups, those without a question left out, as `name macro`."""
    values = [shares[f"{name} {group}"] for group in groups if f"{name} {group}" in shares]
    return {f"{name} macro": sum(values) / len(values)} if values else {}


def counts(predictions: Sequence[str | None], read: Sequence[object] | None = None) -> dict[str, float]:
    """How many questions there are, how many without a prediction and with an empty one.

    Given what was read out of each prediction, also `unparsed`: those that say something, from which nothing was read.
    """
    missing = sum(p is None for p in predictions)
    found: dict[str, float] = {"n": len(predictions), "missing": missing}
    found["empty"] = sum(p is not None and not p.strip() for p in predictions)
    if read is not None:
        found["unparsed"] = sum(bool(p and p.strip()) and not one for p, one in zip(predictions, read))
    return found
