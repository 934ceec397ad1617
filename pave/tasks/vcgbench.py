"""VCGBench, Video-ChatGPT's benchmark of free text about 499 videos: a judge gives answers 0 to 5, for five things.

Below root: Test_Videos/<name>.mp4 (or .mkv, ...), generic_qa.json, temporal_qa.json and consistency_qa.json. Answers to
the generic questions are judged for correctness, detail and context. Made-up records of the first two and of the third:

    {"video_name": "v_abcDEF12345", "Q": "What does the cat do?", "A": "It sleeps on a chair, then it leaves."}
    {"video_name": "v_abcDEF12345", "Q1": "Where does the cat sleep?", "Q2": "On what does it lie?", "A": "On a chair."}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from pave.tasks import _annotations, _open_qa
from pave.tasks._open_qa import chance as chance
from pave.tasks._open_qa import prompt as prompt
from pave.tasks._open_qa import target as target
from pave.tasks.metrics.exact_match import counts
from pave.tasks.metrics.judge_verdicts import Case
from pave.types import Prediction, Question

PARTS = {part: f"{part}_qa.json" for part in ("generic", "temporal", "consistency")}
FILES = {"test": PARTS["generic"], **PARTS}
SPLITS = tuple(FILES)
EXPECTED = {"test": 3493, "generic": 1996, "temporal": 499, "consistency": 998}
"""Questions; each of the 499 records about consistency has two."""
AGAIN = ""
"""The group of a question that has its verdict with the one before it."""
KINDS: dict[str, tuple[str, ...]] = {
    "generic": ("correctness", "detail", "context"),
    "temporal": ("temporal",),
    "consistency": ("consistency",),
    AGAIN: (),
}
"""What the answers of each group are judged for; two that should agree are judged once, with the first."""


def load(split: str, root: Path) -> list[Question]:
    """All questions of a split, test: of all; the group is their part. Raises UserError."""
    _annotations.annotation("vcgbench", split, FILES, root)
    where = _open_qa.place(root, "Test_Videos", ".mp4")
    found: list[Question] = []
    for part in PARTS if split == "test" else (split,):
        found += _annotations.records(root / PARTS[part], _annotations.rows, partial(_questions, part, where))
    return _annotations.numbered(found)


def _questions(part: str, where: _open_qa.Place, raw: Any) -> Iterable[Question]:
    name, answers = _annotations.field(raw, "video_name", str), (_annotations.field(raw, "A", str),)
    for field, group in (("Q1", part), ("Q2", AGAIN)) if part == "consistency" else (("Q", part),):
        qid = f"{part}/{name}/{field[1:]}".removesuffix("/")
        yield Question(qid, where(name), _annotations.field(raw, field, str), answers, group)


def cases(questions: Sequence[Question]) -> list[Case]:
    """What a judge decides: for an answer to a generic question three things, for two that should agree one."""
    partner = {q.qid: r.qid for q, r in pairwise(questions) if r.group == AGAIN}
    return [
        Case(kind, (q.qid, partner[q.qid]) if kind == "consistency" else (q.qid,))
        for q in questions
        for kind in KINDS[q.group]
        if kind != "consistency" or q.qid in partner
    ]


def score(pairs: Iterable[tuple[Question, Prediction | None]]) -> dict[str, float]:
    """Mean score for each of the five, where no verdict is 0, and over readable verdicts; means of the five.

    Only counts for answers that no judge has seen.
    """
    pairs = list(pairs)
    found: Mapping[str, float] = _means(pairs) if _open_qa.is_judged(pairs) else {}
    return {**found, **counts([None if p is None else p.text for _, p in pairs])}


def _means(pairs: Sequence[tuple[Question, Prediction | None]]) -> dict[str, float]:
    whole: dict[str, float] = {}
    read: dict[str, float] = {}
    for kind in [kind for kinds in KINDS.values() for kind in kinds]:
        verdicts = [_open_qa.verdict(p, kind) for q, p in pairs if kind in KINDS[q.group]]
        whole |= _open_qa.mean(kind, [v.score if v else 0 for v in verdicts])
        read |= _open_qa.mean(f"{kind}_judged", [v.score for v in verdicts if v])
    return {
        **whole,
        **_open_qa.mean("mean", list(whole.values())),
        **read,
        **_open_qa.mean("mean_judged", list(read.values())),
    }


def about(split: str) -> dict[str, str]:
    """What the numbers of a split are: rules, prompt, references."""
    return {
        "score": "mean of the judge's 0 to 5, cut to whole numbers, for each of the five; no verdict counts as 0",
        "judged": "the same over readable verdicts only, as Video-ChatGPT's evaluation averages",
        "consistency": "one verdict on the answers to two questions",
        "mean": "mean of those of the five that the split has",
        "prompt": "the question alone",
        "references": "the one answer, written by a language model from a description of the video by people",
    }
