"""Means over questions and over groups of them, and counts of answers that are missing or could not be read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

GROUP_SEPARATOR = " | "
"""Between the groups of a question that belongs to several, as in `short | Knowledge`."""


def mean(name: str, values: Sequence[float], groups: Sequence[str] = ()) -> dict[str, float]:
    """Mean of all values as `name`, and of the values of each named group as `name group`; of no values, nothing."""
    by_group: dict[str, list[float]] = {}
    for names, value in zip(groups, values):
        for group in dict.fromkeys(names.split(GROUP_SEPARATOR)):
            if group:
                by_group.setdefault(f"{name} {group}", []).append(value)

    members = {name: list(values)} if values else {}
    members |= dict(sorted(by_group.items()))
    return {key: sum(numbers) / len(numbers) for key, numbers in members.items()}


def macro_mean(name: str, means: Mapping[str, float], groups: Iterable[str]) -> dict[str, float]:
    """Mean of the means of these groups, those without a question left out, as `name macro`."""
    values = [means[f"{name} {group}"] for group in groups if f"{name} {group}" in means]
    return mean(f"{name} macro", values)


def count_answers(texts: Sequence[str | None], parsed: Sequence[object] | None = None) -> dict[str, float]:
    """Count the questions (`n`), those without an answer (`missing`) and those with an `empty` one.

    Given what was parsed out of each text, also `unparsed`: texts that are not empty, from which nothing was parsed.
    """
    result: dict[str, float] = {
        "n": len(texts),
        "missing": sum(text is None for text in texts),
        "empty": sum(text is not None and not text.strip() for text in texts),
    }
    if parsed is not None:
        result["unparsed"] = sum(bool(text and text.strip()) and not value for text, value in zip(texts, parsed))
    return result
