"""BLEU, ROUGE-L and CIDEr of answers against references, equal to those of pycocoevalcap for equal words."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence

from pave.tasks.metrics.meteor import meteor
from pave.tasks.metrics.ptb_tokenizer import tokenize
from pave.types import UserError

log = logging.getLogger(__name__)
Tokens = Sequence[str]
ORDERS = 4
"""n-grams of 1 to 4 tokens."""


def score(items: Sequence[tuple[Sequence[str], str | None]]) -> dict[str, float]:
    """BLEU-1 to 4, ROUGE_L, CIDEr and, where it can run, METEOR of (references, prediction or None), as fractions.

    None counts as an empty caption.
    """
    if not items:
        return {}
    cut = [([tokenize(r) for r in references], tokenize(said or "")) for references, said in items]
    # Quirk: a fraction such as `1 1/2` is one word to ROUGE, two to the others; nothing is like nothing to ROUGE.
    apart = [([_apart(r) for r in references], _apart(said)) for references, said in cut]
    alike = [
        rouge_l([r or [""] for r in references], words or [""]) if said is not None else 0.0
        for (references, words), (_, said) in zip(cut, items)
    ]
    found = {f"BLEU-{n}": value for n, value in enumerate(bleu(apart), start=1)}
    found["ROUGE_L"] = sum(alike) / len(alike)
    found["CIDEr"] = sum(cider(apart)) / len(apart)
    try:
        found["METEOR"] = meteor(cut)
    except UserError as error:
        log.warning("METEOR is left out: %s", error)
    return found


def _apart(words: Tokens) -> list[str]:
    return " ".join(words).split()


def bleu(items: Sequence[tuple[Sequence[Tokens], Tokens]]) -> list[float]:
    """BLEU-1 to 4 of a corpus of (references, prediction), lengths against the closest reference."""
    hits, said = [0] * ORDERS, [0] * ORDERS
    predicted = expected = 0
    for references, prediction in items:
        predicted += len(prediction)
        expected += min((abs(len(r) - len(prediction)), len(r)) for r in references)[1]
        for n in range(1, ORDERS + 1):
            most: Counter[Tokens] = Counter()
            for reference in references:
                most |= ngrams(reference, n)
            found = ngrams(prediction, n)
            hits[n - 1] += (found & most).total()
            said[n - 1] += found.total()
    # The tiny numbers are pycocoevalcap's guards against zero; they show in the last digits.
    ratio = (predicted + 1e-15) / (expected + 1e-9)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    scores, product = [], 1.0
    for n in range(ORDERS):
        product *= (hits[n] + 1e-15) / (said[n] + 1e-9)
        scores.append(product ** (1 / (n + 1)) * brevity)
    return scores


def rouge_l(references: Sequence[Tokens], prediction: Tokens) -> float:
    """F-score (beta 1.2) of the longest common subsequence: best precision and best recall over the references."""
    common = [longest_common(reference, prediction) for reference in references]
    precision = max(c / max(len(prediction), 1) for c in common)
    recall = max(c / max(len(reference), 1) for c, reference in zip(common, references))
    return (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision) if precision and recall else 0.0


def longest_common(a: Tokens, b: Tokens) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for x in a:
        before = row
        row = [0]
        for j, y in enumerate(b):
            row.append(before[j] + 1 if x == y else max(before[j + 1], row[j]))
    return row[-1]


def cider(items: Sequence[tuple[Sequence[Tokens], Tokens]]) -> list[float]:
    """CIDEr of each of (references, prediction), 0 to 10; rare n-grams of the whole corpus's references weigh more."""
    seen: Counter[Tokens] = Counter()
    for references, _ in items:
        seen.update({gram for r in references for n in range(1, ORDERS + 1) for gram in ngrams(r, n)})
    size = math.log(len(items))
    scores = []
    for references, prediction in items:
        said = _weigh(prediction, seen, size)
        total = 0.0
        for reference in references:
            penalty = math.exp(-((_length(prediction) - _length(reference)) ** 2) / (2 * 6.0**2))
            for mine, theirs in zip(said, _weigh(reference, seen, size)):
                norms = _norm(mine) * _norm(theirs)
                alike = sum(min(weight, theirs[gram]) * theirs[gram] for gram, weight in mine.items() if gram in theirs)
                total += penalty * (alike / norms if norms else alike)
        scores.append(10 * total / ORDERS / len(references))
    return scores


def _weigh(tokens: Tokens, seen: Counter[Tokens], size: float) -> list[dict[Tokens, float]]:
    """tf-idf of the n-grams of each order."""
    return [
        {gram: count * (size - math.log(max(1, seen[gram]))) for gram, count in ngrams(tokens, n).items()}
        for n in range(1, ORDERS + 1)
    ]


def _norm(vector: dict[Tokens, float]) -> float:
    return math.sqrt(sum(weight**2 for weight in vector.values()))


def _length(tokens: Tokens) -> int:
    # Quirk: the length penalty of pycocoevalcap counts pairs of tokens, so one token is as long as none.
    return max(len(tokens) - 1, 0)


def ngrams(tokens: Tokens, n: int) -> Counter[Tokens]:
    """How often each run of n tokens occurs."""
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
