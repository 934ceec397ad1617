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
Item = tuple[Sequence[Tokens], Tokens]
"""References and a prediction, as tokens."""
MAX_ORDER = 4
"""n-grams of 1 to 4 tokens."""


def score(captions: Sequence[tuple[Sequence[str], str | None]]) -> dict[str, float]:
    """BLEU-1 to 4, ROUGE_L, CIDEr and, where it can run, METEOR of (references, prediction or None), as fractions.

    None counts as an empty caption.
    """
    if not captions:
        return {}
    items = [
        ([tokenize(reference) for reference in references], tokenize(prediction or ""))
        for references, prediction in captions
    ]
    # Quirk: a fraction such as `1 1/2` is one word to ROUGE, two to the others; nothing is like nothing to ROUGE.
    rouge = [
        rouge_l([reference or [""] for reference in references], tokens or [""]) if prediction is not None else 0.0
        for (references, tokens), (_, prediction) in zip(items, captions)
    ]
    split = [
        ([_split_fractions(reference) for reference in references], _split_fractions(tokens))
        for references, tokens in items
    ]

    scores = {f"BLEU-{order}": value for order, value in enumerate(bleu(split), start=1)}
    scores["ROUGE_L"] = sum(rouge) / len(rouge)
    scores["CIDEr"] = sum(cider(split)) / len(split)
    try:
        scores["METEOR"] = meteor(items)
    except UserError as error:
        log.warning("METEOR is left out: %s", error)
    return scores


def _split_fractions(tokens: Tokens) -> list[str]:
    return " ".join(tokens).split()


def bleu(items: Sequence[Item]) -> list[float]:
    """BLEU-1 to 4 of a corpus, lengths against the closest reference."""
    matches, totals = [0] * MAX_ORDER, [0] * MAX_ORDER
    predicted_length = reference_length = 0
    for references, prediction in items:
        predicted_length += len(prediction)
        closest = min((abs(len(reference) - len(prediction)), len(reference)) for reference in references)
        reference_length += closest[1]
        for order in range(1, MAX_ORDER + 1):
            allowed: Counter[Tokens] = Counter()
            for reference in references:
                allowed |= ngrams(reference, order)
            predicted = ngrams(prediction, order)
            matches[order - 1] += (predicted & allowed).total()
            totals[order - 1] += predicted.total()

    # The tiny numbers are pycocoevalcap's guards against zero; they show in the last digits.
    ratio = (predicted_length + 1e-15) / (reference_length + 1e-9)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    scores, product = [], 1.0
    for i in range(MAX_ORDER):
        product *= (matches[i] + 1e-15) / (totals[i] + 1e-9)
        scores.append(product ** (1 / (i + 1)) * brevity)
    return scores


def rouge_l(references: Sequence[Tokens], prediction: Tokens) -> float:
    """F-score (beta 1.2) of the longest common subsequence: best precision and best recall over the references."""
    lengths = [longest_common_length(reference, prediction) for reference in references]
    precision = max(length / max(len(prediction), 1) for length in lengths)
    recall = max(length / max(len(reference), 1) for length, reference in zip(lengths, references))
    return (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision) if precision and recall else 0.0


def longest_common_length(a: Tokens, b: Tokens) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for x in a:
        previous = row
        row = [0]
        for j, y in enumerate(b):
            row.append(previous[j] + 1 if x == y else max(previous[j + 1], row[j]))
    return row[-1]


def cider(items: Sequence[Item]) -> list[float]:
    """CIDEr of each item, 0 to 10; n-grams that are rare in the references of the whole corpus weigh more."""
    document_counts: Counter[Tokens] = Counter()
    for references, _ in items:
        document_counts.update(
            {gram for reference in references for n in range(1, MAX_ORDER + 1) for gram in ngrams(reference, n)}
        )
    log_size = math.log(len(items))

    scores = []
    for references, prediction in items:
        predicted = _tf_idf(prediction, document_counts, log_size)
        total = 0.0
        for reference in references:
            penalty = math.exp(-((_length(prediction) - _length(reference)) ** 2) / (2 * 6.0**2))
            for a, b in zip(predicted, _tf_idf(reference, document_counts, log_size)):
                norms = _norm(a) * _norm(b)
                product = sum(min(weight, b[gram]) * b[gram] for gram, weight in a.items() if gram in b)
                total += penalty * (product / norms if norms else product)
        scores.append(10 * total / MAX_ORDER / len(references))
    return scores


def _tf_idf(tokens: Tokens, document_counts: Counter[Tokens], log_size: float) -> list[dict[Tokens, float]]:
    """Weights of the n-grams of each order."""
    return [
        {
            gram: count * (log_size - math.log(max(1, document_counts[gram])))
            for gram, count in ngrams(tokens, order).items()
        }
        for order in range(1, MAX_ORDER + 1)
    ]


def _norm(vector: dict[Tokens, float]) -> float:
    return math.sqrt(sum(weight**2 for weight in vector.values()))


def _length(tokens: Tokens) -> int:
    # Quirk: the length penalty of pycocoevalcap counts pairs of tokens, so one token is as long as none.
    return max(len(tokens) - 1, 0)


def ngrams(tokens: Tokens, n: int) -> Counter[Tokens]:
    """Count each run of n tokens."""
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
