"""judgements.jsonl beside predictions.jsonl: a judge's replies, a line each; judge.json says who judges, and how."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from pave.tasks.metrics import judge_verdicts
from pave.tasks.metrics.judge_prompts import JUDGE_PROMPTS, JudgePrompt
from pave.tasks.metrics.judge_verdicts import JudgeCase, JudgedPrediction, Verdict
from pave.types import Prediction, Question, UserError
from pave.utils.json_files import read_json, read_jsonl

JUDGEMENTS, JUDGE = "judgements.jsonl", "judge.json"
SHOWN_NAMES = 20
"""Names of each kind of failure in metrics.json; samples.jsonl has the verdicts on every answer."""
Record = dict[str, Any]
"""One line: kind, qids, prompt (a hash), and reply, model, tokens_in, tokens_out, cost, verdict; or `error`."""


class JudgeRequest(NamedTuple):
    """One thing to ask."""

    case: JudgeCase
    turns: list[dict[str, str]]
    version: str
    """16 digits of all that is asked; other words, questions or answers have others."""


class JudgeReply(NamedTuple):
    """What a judge said."""

    text: str
    model: str
    """As the judge calls itself."""
    tokens_in: int | None
    tokens_out: int | None


class RequestRefused(Exception):
    """This request failed; others may not."""


class RequestBuilder:
    """What a judge is asked about the answers of a run, in given words."""

    def __init__(
        self, words: Mapping[str, JudgePrompt], questions: Sequence[Question], answers: Mapping[str, Prediction]
    ) -> None:
        self.words, self.answers = words, answers
        self.questions = {question.qid: question for question in questions}

    def prompt(self, case: JudgeCase) -> JudgeRequest | None:
        """None where an answer is missing, or the words for this kind are."""
        if case.kind not in self.words or not all(qid in self.answers for qid in case.qids):
            return None
        said = [self.answers[qid].text for qid in case.qids]
        turns = judge_verdicts.messages(self.words[case.kind], [self.questions[qid] for qid in case.qids], said)
        told = json.dumps([*case, *(turn["content"] for turn in turns)])
        return JudgeRequest(case, turns, hashlib.sha256(told.encode()).hexdigest()[:16])


def read_judgements(file: Path) -> list[Record]:
    """Read all judgements; none where there is no file yet. Raises UserError for a line that is no judgement."""
    if not file.is_file():
        return []
    expected = "a judgement with kind, qids, prompt and reply"
    return read_jsonl(file, expected, _judgement, allow_partial_last_line=True)


def _judgement(line: Record) -> Record:
    """Check a line. Raises ValueError, KeyError or TypeError for one that is no judgement."""
    reply = line["reply"] if "reply" in line else line["error"]
    if line["kind"] not in JUDGE_PROMPTS or not isinstance(line["qids"], list) or not isinstance(reply, str):
        raise ValueError(f"kind {line['kind']}, qids {line['qids']}")
    return line


def read_manifest(predictions: Path) -> dict[str, Any] | None:
    """Read judge.json beside a predictions file; None where there is none. Raises UserError for a damaged one."""
    file = predictions.with_name(JUDGE)
    return read_json(file, "what `pave judge` wrote", ("judge", "words")) if file.is_file() else None


def _words(told: Mapping[str, Any]) -> dict[str, JudgePrompt]:
    return {kind: JudgePrompt(**one) for kind, one in told["words"]["text"].items()}


def attach_verdicts(
    predictions: Path, questions: Sequence[Question], answers: Mapping[str, Prediction]
) -> dict[str, Prediction]:
    """The answers with the verdicts on them, where a judge has been asked; a verdict on another answer is left out.

    The first readable reply counts. Raises UserError for a broken line and for one about a question of another split.
    """
    told = read_manifest(predictions)
    if told is None:
        return dict(answers)
    asked = RequestBuilder(_words(told), questions, answers)
    verdicts: dict[str, dict[str, Verdict]] = {qid: {} for qid in answers}
    for record in read_judgements(predictions.with_name(JUDGEMENTS)):
        case = JudgeCase(record["kind"], tuple(record["qids"]))
        strange = [qid for qid in case.qids if qid not in asked.questions]
        if strange:
            raise UserError(f"{predictions.with_name(JUDGEMENTS)}: question '{strange[0]}' is not one of this split")
        verdict, prompt = judge_verdicts.parse(record.get("reply", ""), case.kind), asked.prompt(case)
        if verdict and prompt and prompt.version == record["prompt"]:
            verdicts[case.qids[0]].setdefault(case.kind, verdict)
    return {qid: JudgedPrediction(qid, answer.text, verdicts[qid]) for qid, answer in answers.items()}


def summary(
    predictions: Path, cases: Sequence[JudgeCase], questions: Sequence[Question], answers: Mapping[str, Prediction]
) -> dict[str, Any] | None:
    """Who judged, in whose words, for how many tokens; which cases have no verdict, and why. None: no judge yet."""
    told = read_manifest(predictions)
    if told is None:
        return None
    asked, records = (
        RequestBuilder(_words(told), questions, answers),
        read_judgements(predictions.with_name(JUDGEMENTS)),
    )
    seen: dict[str, set[str]] = {}
    for record in records:
        readable = "reply" in record and judge_verdicts.parse(record["reply"], record["kind"]) is not None
        what = "judged" if readable else "unparsed" if "reply" in record else "refused"
        seen.setdefault(record["prompt"], set()).add(what)
    states: dict[str, list[str]] = {state: [] for state in ("judged", "unparsed", "refused", "unjudged", "unanswered")}
    for case in cases:
        prompt = asked.prompt(case)
        found = seen.get(prompt.version, set()) if prompt else {"unanswered"}
        state = next((state for state in states if state in found), "unjudged")
        states[state].append(f"{case.qids[0]} ({case.kind})")
    replies = [record for record in records if "reply" in record]
    costs = [record["cost"] for record in replies if record["cost"] is not None]
    return {
        **told["judge"],
        "words": {name: told["words"][name] for name in ("whose", "versions")},
        "models": sorted({record["model"] for record in replies}),
        "cases": len(cases),
        **{state: len(names) for state, names in states.items()},
        "names": {state: names[:SHOWN_NAMES] for state, names in states.items() if names and state != "judged"},
        "replies": len(replies),
        "tokens_in": sum(record["tokens_in"] or 0 for record in replies),
        "tokens_out": sum(record["tokens_out"] or 0 for record in replies),
        "cost": sum(costs) if costs else None,
    }


def summary_lines(found: Mapping[str, Any] | None) -> list[str]:
    """For people: who judged what, and loudly what was not judged."""
    if found is None:
        return ["NOT JUDGED: `pave judge` asks a judge; until then there are no scores"]
    paid = "" if found["cost"] is None else f", cost {found['cost']:.4f}"
    told = [
        f"judge: {', '.join(found['models']) or found['name']}, in words that are {found['words']['whose']}; "
        f"{found['judged']} of {found['cases']} cases judged",
        f"judge: {found['replies']} replies, {found['tokens_in']} tokens in, {found['tokens_out']} out{paid}",
    ]
    why = {
        "unparsed": "replies that cannot be read",
        "refused": "refused by the judge",
        "unjudged": "NOT JUDGED YET (`pave judge` goes on)",
        "unanswered": "without an answer to judge",
    }
    return told + [
        f"counted as wrong: {found[state]} {text}, as {found['names'][state][0]}"
        for state, text in why.items()
        if found[state]
    ]


@dataclass
class JudgementLog:
    """What was asked and what it cost, by one process at a time."""

    handle: BinaryIO
    price: tuple[float, float] | None
    """Of a million tokens in, and out."""
    spent: float = 0.0
    replies: dict[str, list[bool]] = field(default_factory=dict)
    """By prompt, whether each reply could be read."""

    @staticmethod
    @contextmanager
    def open(file: Path, price: tuple[float, float] | None) -> Iterator[JudgementLog]:
        """With what was saved before, but for what a kill tore. Raises UserError while another process has it."""
        with file.open("a+b") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(f"{file}: another `pave judge` writes it; wait for its end") from error
            handle.seek(0)
            handle.truncate(handle.read().rfind(b"\n") + 1)
            ledger = JudgementLog(handle, price)
            for record in read_judgements(file):
                ledger._count(record)
            yield ledger

    def write(self, prompt: JudgeRequest, reply: JudgeReply | RequestRefused) -> Record:
        """Save a reply; returns its line."""
        record: Record = {**prompt.case._asdict(), "prompt": prompt.version}
        if isinstance(reply, RequestRefused):
            record["error"] = str(reply)
        else:
            verdict = judge_verdicts.parse(reply.text, prompt.case.kind)
            said = {"reply": reply.text, **reply._asdict(), "cost": self._cost(reply)}
            del said["text"]
            record |= said | {"verdict": verdict._asdict() if verdict else None}
        self.handle.write(json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
        self.handle.flush()
        self._count(record)
        return record

    def _count(self, record: Record) -> None:
        self.spent += record.get("cost") or 0.0
        if "reply" in record:
            readable = judge_verdicts.parse(record["reply"], record["kind"]) is not None
            self.replies.setdefault(record["prompt"], []).append(readable)

    def _cost(self, reply: JudgeReply) -> float | None:
        if self.price is None or reply.tokens_in is None or reply.tokens_out is None:
            return None
        return (reply.tokens_in * self.price[0] + reply.tokens_out * self.price[1]) / 1e6
