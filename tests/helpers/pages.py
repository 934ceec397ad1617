"""What tests of `documents` and others share."""

from __future__ import annotations

import re
import shlex

from helpers.paths import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("doc/**/*.md")])


def commands(text: str) -> list[list[str]]:
    """Every pave command of a text, as words."""
    lines = [line.strip() for line in text.replace("\\\n", " ").splitlines()]
    words = [shlex.split(line, comments=True) for line in lines if line.startswith(("pave ", "python demo_pave.py "))]
    words = [[word for word in line if not re.match(r"\$(@|\{(@|\w+\[@\]))", word)] for line in words]
    return [w[1:] if w[0] == "pave" else ["demo", *w[2:]] for w in words]
