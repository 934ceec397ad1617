"""Sums up what a judge did, for metrics.json and for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pave.evaluation.judge_ledger import (
    JUDGEMENTS,
    JudgeDescription,
    Prompts,
    RequestBuilder,
    prompts_of,
    read_judgements,
    read_manifest,
    read_verdict,
)
from pave.tasks.metrics.judge_verdicts import JudgeCase
from pave.types import Prediction, Question

MAX_NAMES = 20
"""Names of each kind of failure in metrics.json; samples.jsonl has the verdicts on every answer."""
STATES = {
    "judged": "",
    "unparsed": "replies that cannot be read",
    "refused": "refused by the judge",
    "unjudged": "NOT JUDGED YET (`pave judge` goes on)",
    "unanswered": "without an answer to judge",
}
"""States of a case, the best first, and why it counts as wrong."""


class JudgeSummary(JudgeDescription):
    """The judge's entry in metrics.json."""

    words: Prompts
    models: list[str]
    """Names that judges stated."""
    cases: int
    judged: int
    unparsed: int
    refused: int
    unjudged: int
    unanswered: int
    names: dict[str, list[str]]
    """The first cases that are not judged, by state."""
    replies: int
    tokens_in: int
    tokens_out: int
    cost: float | None


def summary(
    predictions: Path, cases: Sequence[JudgeCase], questions: Sequence[Question], answers: Mapping[str, Prediction]
) -> JudgeSummary | None:
    """Sum up who judged by which prompts, the tokens, and the cases without a verdict; None without a judge."""
    manifest = read_manifest(predictions)
    if manifest is None:
        return None
    judgements = read_judgements(predictions.with_name(JUDGEMENTS))

    states_by_request: dict[str, set[str]] = {}
    for judgement in judgements:
        state = "judged" if read_verdict(judgement) else "unparsed" if "reply" in judgement else "refused"
        states_by_request.setdefault(judgement["prompt"], set()).add(state)

    builder = RequestBuilder(prompts_of(manifest), questions, answers)
    cases_by_state: dict[str, list[str]] = {state: [] for state in STATES}
    for case in cases:
        request = builder.build(case)
        states = states_by_request.get(request.version, {"unjudged"}) if request else {"unanswered"}
        best = next(state for state in STATES if state in states)
        cases_by_state[best].append(f"{case.qids[0]} ({case.kind})")

    replies = [judgement for judgement in judgements if "reply" in judgement]
    costs = [cost for reply in replies if (cost := reply["cost"]) is not None]
    return {
        **manifest["judge"],
        "words": {"whose": manifest["words"]["whose"], "versions": manifest["words"]["versions"]},
        "models": sorted({reply["model"] for reply in replies}),
        "cases": len(cases),
        "judged": len(cases_by_state["judged"]),
        "unparsed": len(cases_by_state["unparsed"]),
        "refused": len(cases_by_state["refused"]),
        "unjudged": len(cases_by_state["unjudged"]),
        "unanswered": len(cases_by_state["unanswered"]),
        "names": {s: names[:MAX_NAMES] for s, names in cases_by_state.items() if names and s != "judged"},
        "replies": len(replies),
        "tokens_in": sum(reply["tokens_in"] or 0 for reply in replies),
        "tokens_out": sum(reply["tokens_out"] or 0 for reply in replies),
        "cost": sum(costs) if costs else None,
    }


def summary_lines(summed: JudgeSummary | None) -> list[str]:
    """Lines for people: who judged what, and loudly what was not judged."""
    if summed is None:
        return ["NOT JUDGED: `pave judge` asks a judge; until then there are no scores"]

    cost = "" if summed["cost"] is None else f", cost {summed['cost']:.4f}"
    lines = [
        f"judge: {', '.join(summed['models']) or summed['name']}, in words that are {summed['words']['whose']}; "
        f"{summed['judged']} of {summed['cases']} cases judged",
        f"judge: {summed['replies']} replies, {summed['tokens_in']} tokens in, {summed['tokens_out']} out{cost}",
    ]
    counts = {
        "unparsed": summed["unparsed"],
        "refused": summed["refused"],
        "unjudged": summed["unjudged"],
        "unanswered": summed["unanswered"],
    }
    for state, names in summed["names"].items():
        lines.append(f"counted as wrong: {counts[state]} {STATES[state]}, as {names[0]}")
    return lines
