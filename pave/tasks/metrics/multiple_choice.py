"""Which option does an answer choose? The extractors of public evaluators, by name, and a strict one of ours."""

from __future__ import annotations

import re

PREFIXES = ("The best answer is", "The correct answer is", "The answer is", "The answer")
# Quirk: a comma is missing between two entries of the public lists, twice, so the four phrases are never taken away.
GLUED = ("The best option isThe correct option is", "Best answer:Best option:")
STATED = {
    "answer is": ("", "the ", "correct ", "the correct ", "best ", "the best ", "my "),
    "option is": ("correct ", "the correct ", "best ", "the best "),
    "choice is": ("", "the ", "correct ", "the correct ", "my "),
}
PHRASES = [before + phrase for phrase, ways in STATED.items() for before in ways]
PHRASES += ("i choose", "i select", "i pick", "옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは")
FORMS = ("({})", "{}.", "{}:", "{})", "{} ")
"""From the most to the least telling, after a start, an end and a phrase."""
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'


def strict(text: str, letters: str) -> str:
    """The letter an answer states: at its head as in `B. cup`, else after `answer is`, else the only one on its own.

    "" where none or several are stated. `A` before a word, as in `A man`, is an article and no letter.
    """
    one = f"([{letters}])"
    forms = (
        rf"^\W*{one}\s*[.):](?=\W*$|\s)",
        rf"(?i:\b(?:answer|option|choice)(?:\s+is)?)[\s:*(\"']*{one}(?=\W*$|[.):,;*\"'])",
        rf"(?<![A-Za-z0-9_])(?!A\s+(?!(?:is|or|and)\b)[^\W\d_]){one}(?!['’]?\w)",
    )
    for form in forms:
        if found := set(re.findall(form, text)):
            return found.pop() if len(found) == 1 else ""
    return ""


def legacy(text: str) -> str:
    """The first of A to D anywhere: Video-MME in lmms-eval up to 0.7.1, the release, the official script."""
    return _first(text, (*PREFIXES, *GLUED))


def vlmeval(text: str) -> str:
    """The same as VLMEvalKit has it for Video-MME."""
    return _first(text, (*PREFIXES, *GLUED, "Answer:", "Option:"))


def _first(text: str, prefixes: tuple[str, ...]) -> str:
    text = text.strip()
    for prefix in prefixes:
        text = text.replace(prefix, "")
    found = re.search("[ABCD]", text)
    return found[0] if found else ""


def mcq(text: str, letters: str) -> str:
    """The most telling place of any of `letters`, the last of equals: lmms-eval from 0.7.2 for Video-MME and MLVU."""
    text = text.strip()
    for mark in ",.!?;:'\"":
        text = text.strip(mark)
    text = f" {text} "
    bare, lower = text.strip(), text.lower()
    after = [at + len(phrase) for phrase in PHRASES if (at := lower.find(phrase)) >= 0]
    places: list[tuple[int, int, str]] = []
    for name in letters:
        if bare.startswith(name) and not bare[1:2].isalpha():
            places.append((len(FORMS) + 2, 0, name))
        if bare.endswith(name) and not bare[-2:-1].isalpha():
            places.append((len(FORMS) + 1, 0, name))
        places += [(len(FORMS), text.find(name, start), name) for start in after if name in text[start:]]
        forms = [form.format(name) for form in FORMS]
        places += [(len(FORMS) - rank, text.rfind(form), name) for rank, form in enumerate(forms, 1) if form in text]
    places = places or [(0, text.rfind(name), name) for name in letters if name in text]
    return max(places, key=lambda place: place[:2], default=(0, 0, ""))[2]


def mvbench(text: str) -> str:
    """The letter that lmms-eval finds for MVBench."""
    text = text.strip()
    if found := re.match(r"([A-E])\.\s*.+$", text, re.IGNORECASE):
        return found[1].upper()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    comma = re.search(r"\d,\d", text)
    bare = text
    for mark in PUNCTUATION:
        apart = comma or f"{mark} " in text or f" {mark}" in text
        bare = bare.replace(mark, "" if apart else " ")
    bare = re.sub(r"\.(?!\d)", "", bare, count=32)
    for mark in "'\")(":
        bare = bare.strip(mark)
    bare = bare.strip().lower()
    # Quirk: the article `a` is the letter A.
    if found := re.search(r"\b[A-E]\b", bare, re.IGNORECASE):
        return found[0].upper()
    return bare.upper() if bare in tuple("fgh") else ""


def mvbench_official(text: str, answer: str) -> bool:
    """Is the first word the letter `answer`, by the notebook of MVBench's authors?"""
    # Quirk: an empty answer is right, whatever the letter.
    first, gold = text.lower().split(" ")[0], f"({answer.lower()})"
    return first.replace(".", "") in gold or gold in first


def mlvu(text: str) -> str:
    """What stands before the first `)`, or all there is: lmms-eval 0.3 to 0.7.1 for MLVU, its copy in the release."""
    text = text.strip()
    end = text.find(")")
    return text if end < 0 else text[max(end - 1, 0) : end]
