"""Which option does an answer choose? The extractors of public evaluators, and a strict one of ours."""

from __future__ import annotations

import re

PREFIXES = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    # Quirk: a comma is missing between two entries of the public lists, twice, so the four phrases always stay.
    "The best option isThe correct option is",
    "Best answer:Best option:",
)
"""Phrases that `first_letter` takes away."""
STATEMENTS = {
    "answer is": ("", "the ", "correct ", "the correct ", "best ", "the best ", "my "),
    "option is": ("correct ", "the correct ", "best ", "the best "),
    "choice is": ("", "the ", "correct ", "the correct ", "my "),
}
PHRASES = [beginning + statement for statement, beginnings in STATEMENTS.items() for beginning in beginnings]
PHRASES += ("i choose", "i select", "i pick", "옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは")
FORMS = ("({})", "{}.", "{}:", "{})", "{} ")
"""Forms of a letter, from the most to the least telling; less than a letter at an end or after a phrase."""
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'


def stated_letter(text: str, letters: str) -> str:
    """The letter an answer states: at its head as in `B. cup`, else after `answer is`, else the only one on its own.

    "" where none or several are stated. `A` before a word, as in `A man`, is an article and no letter.
    """
    letter = f"([{letters}])"
    patterns = (
        rf"^\W*{letter}\s*[.):](?=\W*$|\s)",
        rf"(?i:\b(?:answer|option|choice)(?:\s+is)?)[\s:*(\"']*{letter}(?=\W*$|[.):,;*\"'])",
        rf"(?<![A-Za-z0-9_])(?!A\s+(?!(?:is|or|and)\b)[^\W\d_]){letter}(?!['’]?\w)",
    )
    for pattern in patterns:
        stated = set(re.findall(pattern, text))
        if stated:
            return stated.pop() if len(stated) == 1 else ""
    return ""


def first_letter(text: str) -> str:
    """The first of A to D anywhere, or "": Video-MME in lmms-eval up to 0.7.1, by its authors and by PAVE's code."""
    text = text.strip()
    for prefix in PREFIXES:
        text = text.replace(prefix, "")
    letter = re.search("[ABCD]", text)
    return letter[0] if letter else ""


def extract_mcq_answer(text: str, letters: str) -> str:
    """The letter at the most telling place, the last of equals: lmms-eval from 0.7.2 for Video-MME and MLVU."""
    text = text.strip()
    for mark in ",.!?;:'\"":
        text = text.strip(mark)
    stripped = text.strip()
    text = f" {text} "
    lower = text.lower()
    phrase_ends = [lower.find(phrase) + len(phrase) for phrase in PHRASES if phrase in lower]

    # (rank, position, letter)
    candidates: list[tuple[int, int, str]] = []
    for letter in letters:
        if stripped.startswith(letter) and not stripped[1:2].isalpha():
            candidates.append((len(FORMS) + 2, 0, letter))
        if stripped.endswith(letter) and not stripped[-2:-1].isalpha():
            candidates.append((len(FORMS) + 1, 0, letter))
        for end in phrase_ends:
            if letter in text[end:]:
                candidates.append((len(FORMS), text.find(letter, end), letter))
        for rank, form in enumerate(FORMS, start=1):
            if form.format(letter) in text:
                candidates.append((len(FORMS) - rank, text.rfind(form.format(letter)), letter))

    if not candidates:
        candidates = [(0, text.rfind(letter), letter) for letter in letters if letter in text]
    return max(candidates, key=lambda candidate: candidate[:2], default=(0, 0, ""))[2]


def mvbench_letter(text: str) -> str:
    """The letter that lmms-eval extracts for MVBench, or ""."""
    text = text.strip()
    at_head = re.match(r"([A-E])\.\s*.+$", text, re.IGNORECASE)
    if at_head:
        return at_head[1].upper()

    text = text.replace("\n", " ").replace("\t", " ").strip()
    comma_in_number = re.search(r"\d,\d", text)
    words = text
    for mark in PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        words = words.replace(mark, "" if comma_in_number or beside_space else " ")
    words = re.sub(r"\.(?!\d)", "", words, count=32)
    for mark in "'\")(":
        words = words.strip(mark)
    words = words.strip().lower()

    # Quirk: the article `a` is the letter A.
    letter = re.search(r"\b[A-E]\b", words, re.IGNORECASE)
    if letter:
        return letter[0].upper()
    return words.upper() if words in tuple("fgh") else ""


def is_right_for_mvbench_authors(text: str, letter: str) -> bool:
    """Whether the first word is the right letter, by the notebook of MVBench's authors."""
    # Quirk: an empty answer is right, whatever the letter.
    first_word, reference = text.lower().split(" ")[0], f"({letter.lower()})"
    return first_word.replace(".", "") in reference or reference in first_word


def letter_before_bracket(text: str) -> str:
    """What is before the first `)`, or the whole text: lmms-eval 0.3 to 0.7.1 for MLVU, and PAVE's copy of it."""
    text = text.strip()
    end = text.find(")")
    return text if end < 0 else text[max(end - 1, 0) : end]
