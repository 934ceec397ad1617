"""Which option does an answer choose?"""

from __future__ import annotations

import re


def letter(text: str, letters: str) -> str:
    """The capital letter an answer chooses among `letters`, or "": the rules of lmms-eval 0.7.2 and 0.7.3.

    The first of these forms that occurs decides, and the last place where it does.
    """
    one = f"([{letters}])"
    forms = (
        rf"^{one}(?![A-Za-z])",
        rf"(?<![A-Za-z]){one}\W*$",
        rf"(?i:answer|option|choice)(?i:\s+is)?\W*{one}(?![A-Za-z])",
        rf"\({one}\)",
        rf"{one}\.",
        rf"{one}:",
        rf"{one}\)",
        rf"{one} ",
        one,
    )
    for form in forms:
        if found := re.findall(form, text.strip()):
            return found[-1]
    return ""
