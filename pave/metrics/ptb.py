"""Words of a caption as the Penn Treebank tokenizer of Stanford CoreNLP 3.4.1 cuts them, which needs Java.

The same on ordinary English sentences; not for links, addresses, file names, smileys and long numbers in identifiers,
or where capitals tell the end of a sentence from an abbreviation.
"""

from __future__ import annotations

import re

TOKEN = re.compile(
    r"""
      (?<!\w)(?:[a-z]\.)+(?![a-z0-9])                                   # u.s., and a single letter with its stop
    | (?<!\w)(?:mr|mrs|ms|dr|prof|rev|gen|sr|jr|st|mt|ave|vs|etc|ph\.d|inc|co|corp|ltd|jan|feb|aug|sept?|oct|nov|dec)\.
    | (?<!\w)(?:nos?|figs?|pp?)\.(?=\ ?\d)                              # no. 5
    | (?<!\w)'\d\ds?(?![\w%])                                       # '90
    | (?<!\d)(?:[.:,]|(?<!\w)[-+])?\d+(?:[.,:/-]\d+)*(?:-[a-z]+)+        # 4.5-inch
    | (?<!\d)(?:[.:,]|(?<!\w)[-+])?\d+(?:[.,:/-]\d+)+                    # 3:30, and 3:30 of 3:30pm
    | (?<!\d)(?:[.:,]|(?<!\w)[-+])\d+                                    # -5
    | n't(?![a-z])
    | '(?:s|m|d|re|ve|ll)(?!\w)
    | (?<!\w)(?:[dlos]'|ne'|ma')[a-z]+                                  # o'clock, ma'am
    | [^\W_]+(?:[-/_&][^\W_]+)*?(?=n't(?![a-z]))                        # do of don't
    | [^\W_]+(?:[-/_&][^\W_]+)+                                         # t-shirt, left/right
    | [a-z]+(?:\.[a-z]+)+
    | [^\W_]+
    | [?!]+
    | [^\w\s]|_
    """,
    re.VERBOSE,
)
DROPPED = {"'", "`", ".", "?", "!", ",", ":", "-", ";"}
"""Punctuation that captions are compared without; `?!` and brackets stay, as in pycocoevalcap."""
APART = {"cannot": "can not", "gonna": "gon na", "wanna": "wan na", "gotta": "got ta", "gimme": "gim me"} | {
    "lemme": "lem me", "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"
}  # fmt: skip
PLAIN = str.maketrans(dict.fromkeys('"“”–—…', " ") | dict.fromkeys("’‘", "'"))


def tokenize(text: str) -> list[str]:
    """Lower-case words without punctuation. Line breaks of any kind are spaces."""
    found = TOKEN.findall(text.lower().translate(PLAIN))
    return [word for token in found for word in APART.get(token, token).split() if word not in DROPPED]
