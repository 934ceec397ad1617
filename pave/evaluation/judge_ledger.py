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
from pave.tasks.metrics.judge_prompts import WORDS, Words
from pave.tasks.metrics.judge_verdicts import Case, Judged, Verdict
from pave.types import Prediction, Question, UserError

JUDGEMENTS, JUDGE = "judgements.jsonl", "judge.json"
SHOWN = 20
"""Names of each kind of failure in metrics.json; samples.jsonl has the verdicts on every answer."""
Record = dict[str, Any]
"""One line: kind, qids, prompt (a hash), and reply, model, tokens_in, tokens_out, cost, verdict; or `error`."""


class Prompt(NamedTuple):
    """One thing to ask."""

    case: Case
    turns: list[dict[str, str]]
    version: str
    """16 digits of all that is asked; other words, questions or answers have others."""


class Reply(NamedTuple):
    """What a judge said."""

    text: str
    model: str
    """As the judge calls itself."""
    tokens_in: int | None
    tokens_out: int | None


class Refused(Exception):
    """This request failed; others may not."""


class Asked:
    """What a judge is asked about the answers of a run, in given words."""

    def __init__(
        self, words: Mapping[str, Words], questions: Sequence[Question], answers: Mapping[str, Prediction]
    ) -> None:
        self.words, self.answers = words, answers
        self.questions = {question.qid: question for question in questions}

    def prompt(self, case: Case) -> Prompt | None:
        """None where an answer is missing, or the words for this kind are."""
        if case.kind not in self.words or not all(qid in self.answers for qid in case.qids):
            return None
        said = [self.answers[qid].text for qid in case.qids]
        turns = judge_verdicts.messages(self.words[case.kind], [self.questions[qid] for qid in case.qids], said)
        told = json.dumps([*case, *(turn["content"] for turn in turns)])
        return Prompt(case, turns, hashlib.sha256(told.encode()).hexdigest()[:16])


def read(file: Path) -> list[Record]:
    """All lines, but for a last one that a kill tore. Raises UserError for another broken line."""
    records: list[Record] = []
    lines = file.read_bytes().split(b"\n") if file.is_file() else []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            record = json.loads(line)
            said = record["reply"] if "reply" in record else record["error"]
            if record["kind"] not in WORDS or not isinstance(record["qids"], list) or not isinstance(said, str):
                raise ValueError(f"kind {record['kind']}, qids {record['qids']}")
        except (ValueError, KeyError, TypeError) as error:
            what = f"not a judgement ({error!r})"
            raise UserError(f"{file}:{number}: {what}; expected kind, qids, prompt and reply") from error
        records.append(record)
    return records


def manifest(predictions: Path) -> dict[str, Any] | None:
    """What judge.json beside a predictions file says, if it is there."""
    file = predictions.with_name(JUDGE)
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _words(told: Mapping[str, Any]) -> dict[str, Words]:
    return {kind: Words(**one) for kind, one in told["words"]["text"].items()}


def attach(
    predictions: Path, questions: Sequence[Question], answers: Mapping[str, Prediction]
) -> dict[str, Prediction]:
    """The answers with the verdicts on them, where a judge has been asked; a verdict on another answer is left out.

    The first readable reply counts. Raises UserError for a broken line and for one about a question of another split.
    """
    told = manifest(predictions)
    if told is None:
        return dict(answers)
    asked = Asked(_words(told), questions, answers)
    verdicts: dict[str, dict[str, Verdict]] = {qid: {} for qid in answers}
    for record in read(predictions.with_name(JUDGEMENTS)):
        case = Case(record["kind"], tuple(record["qids"]))
        strange = [qid for qid in case.qids if qid not in asked.questions]
        if strange:
            raise UserError(f"{predictions.with_name(JUDGEMENTS)}: question '{strange[0]}' is not one of this split")
        verdict, prompt = judge_verdicts.parse(record.get("reply", ""), case.kind), asked.prompt(case)
        if verdict and prompt and prompt.version == record["prompt"]:
            verdicts[case.qids[0]].setdefault(case.kind, verdict)
    return {qid: Judged(qid, answer.text, verdicts[qid]) for qid, answer in answers.items()}


def summary(
    predictions: Path, cases: Sequence[Case], questions: Sequence[Question], answers: Mapping[str, Prediction]
) -> dict[str, Any] | None:
    """Who judged, in whose words, for how many tokens; which cases have no verdict, and why. None: no judge yet."""
    told = manifest(predictions)
    if told is None:
        return None
    asked, records = Asked(_words(told), questions, answers), read(predictions.with_name(JUDGEMENTS))
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
        "names": {state: names[:SHOWN] for state, names in states.items() if names and state != "judged"},
        "replies": len(replies),
        "tokens_in": sum(record["tokens_in"] or 0 for record in replies),
        "tokens_out": sum(record["tokens_out"] or 0 for record in replies),
        "cost": sum(costs) if costs else None,
    }


def lines(found: Mapping[str, Any] | None) -> list[str]:
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
class Ledger:
    """What was asked and what it cost, by one process at a time."""

    handle: BinaryIO
    price: tuple[float, float] | None
    """Of a million tokens in, and out."""
    spent: float = 0.0
    replies: dict[str, list[bool]] = field(default_factory=dict)
    """By prompt, whether each reply could be read."""

    @staticmethod
    @contextmanager
    def open(file: Path, price: tuple[float, float] | None) -> Iterator[Ledger]:
        """With what was saved before, but for what a kill tore. Raises UserError while another process has it."""
        with file.open("a+b") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(f"{file}: another `pave judge` writes it; wait for its end") from error
            handle.seek(0)
            handle.truncate(handle.read().rfind(b"\n") + 1)
            ledger = Ledger(handle, price)
            for record in read(file):
                ledger._count(record)
            yield ledger

    def write(self, prompt: Prompt, reply: Reply | Refused) -> Record:
        """Save a reply; returns its line."""
        record: Record = {**prompt.case._asdict(), "prompt": prompt.version}
        if isinstance(reply, Refused):
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

    def _cost(self, reply: Reply) -> float | None:
        if self.price is None or reply.tokens_in is None or reply.tokens_out is None:
            return None
        return (reply.tokens_in * self.price[0] + reply.tokens_out * self.price[1]) / 1e6
