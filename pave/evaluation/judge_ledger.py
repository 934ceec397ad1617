"""judgements.jsonl beside predictions.jsonl: a judge's replies, a line each; judge.json says who judges, and how."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypedDict, cast

from pave.evaluation.run_folder import changed_entries
from pave.tasks.metrics import judge_verdicts
from pave.tasks.metrics.judge_prompts import JUDGE_PROMPTS, JudgePrompt
from pave.tasks.metrics.judge_verdicts import JudgeCase, JudgedPrediction, Verdict
from pave.types import Prediction, Question, UserError
from pave.utils.atomic import write_text
from pave.utils.json_files import read_json, read_jsonl

JUDGEMENTS, JUDGE = "judgements.jsonl", "judge.json"


class Judgement(TypedDict, total=False):
    """One line of judgements.jsonl: a reply, or why there is none."""

    kind: str
    qids: list[str]
    prompt: str
    """`JudgeRequest.version` of the request."""
    reply: str
    model: str
    tokens_in: int | None
    tokens_out: int | None
    cost: float | None
    verdict: dict[str, object] | None
    """None for a reply that cannot be read."""
    error: str
    """Instead of the reply."""


class JudgeDescription(TypedDict, total=False):
    """Who judges."""

    kind: str
    """endpoint, local or recorded"""
    name: str
    body: dict[str, object]
    """Members of the requests, unless recorded."""


class Prompts(TypedDict, total=False):
    """The prompts of a judge, by kind of case."""

    whose: str
    versions: dict[str, str]
    text: dict[str, dict[str, str]]
    """Not in a summary."""


class JudgeManifest(TypedDict):
    """The content of judge.json."""

    task: str
    split: str
    judge: JudgeDescription
    words: Prompts


class JudgeRequest(NamedTuple):
    """A request for one verdict."""

    case: JudgeCase
    turns: list[dict[str, str]]
    version: str
    """16 digits of the whole text; another prompt, question or answer has another."""


class JudgeReply(NamedTuple):
    """A judge's reply."""

    text: str
    model: str
    """Name that the judge states."""
    tokens_in: int | None
    tokens_out: int | None


class RequestRefused(Exception):
    """This request failed; others may not."""


class RequestBuilder:
    """Makes the requests about the answers of a run."""

    def __init__(
        self, prompts: Mapping[str, JudgePrompt], questions: Sequence[Question], answers: Mapping[str, Prediction]
    ) -> None:
        self.prompts = prompts
        self.answers = answers
        self.questions = {question.qid: question for question in questions}

    def build(self, case: JudgeCase) -> JudgeRequest | None:
        """Make the request for a case; None without an answer, or without a prompt for its kind."""
        if case.kind not in self.prompts or not all(qid in self.answers for qid in case.qids):
            return None
        questions = [self.questions[qid] for qid in case.qids]
        texts = [self.answers[qid].text for qid in case.qids]
        turns = judge_verdicts.messages(self.prompts[case.kind], questions, texts)
        content = json.dumps([*case, *(turn["content"] for turn in turns)])
        return JudgeRequest(case, turns, hashlib.sha256(content.encode()).hexdigest()[:16])


def read_judgements(file: Path) -> list[Judgement]:
    """Read all judgements; none where there is no file yet. Raises UserError for a line that is no judgement."""
    if not file.is_file():
        return []
    expected = "a judgement with kind, qids, prompt and reply"
    return read_jsonl(file, expected, _parse_judgement, allow_partial_last_line=True)


def _parse_judgement(line: dict[str, Any]) -> Judgement:
    """Check a line. Raises ValueError, KeyError or TypeError for one that is no judgement."""
    text = line["reply"] if "reply" in line else line["error"]
    if line["kind"] not in JUDGE_PROMPTS or not isinstance(line["qids"], list) or not isinstance(text, str):
        raise ValueError(f"kind {line['kind']}, qids {line['qids']}")
    return cast("Judgement", line)


def read_verdict(judgement: Judgement) -> Verdict | None:
    """Read the reply anew: the rules may have changed since it was saved."""
    return judge_verdicts.parse(judgement.get("reply", ""), judgement["kind"])


def read_manifest(predictions: Path) -> JudgeManifest | None:
    """Read the judge.json beside a predictions file; None where there is none."""
    file = predictions.with_name(JUDGE)
    if not file.is_file():
        return None
    return cast("JudgeManifest", read_json(file, "a file that `pave judge` wrote", ("judge", "words")))


def claim_judge_file(file: Path, manifest: JudgeManifest) -> None:
    """Check that the folder has no judge or this one: it holds one judge's verdicts. Raises UserError."""
    if not file.exists():
        if file.with_name(JUDGEMENTS).exists():
            raise UserError(f"{file}: missing, though there is {JUDGEMENTS}; put it back, or move {JUDGEMENTS} away")
        write_text(file, json.dumps(manifest, indent=1, ensure_ascii=False))

    changes = changed_entries(read_json(file, "a file that `pave judge` wrote"), manifest)
    if changes:
        text = "; ".join(f"{name} was {before!r:.60}, is now {after!r:.60}" for name, before, after in changes)
        raise UserError(f"{file}: another judge: {text}; copy the predictions to another folder")


def prompts_of(manifest: JudgeManifest) -> dict[str, JudgePrompt]:
    """The prompts that a judge.json keeps."""
    return {kind: JudgePrompt(**turns) for kind, turns in manifest["words"]["text"].items()}


def attach_verdicts(
    predictions: Path, questions: Sequence[Question], answers: Mapping[str, Prediction]
) -> dict[str, Prediction]:
    """Give the answers their verdicts, where a judge has been asked; a verdict on another answer is left out.

    The first readable reply counts. Raises UserError for a broken line and for one about a question of another split.
    """
    manifest = read_manifest(predictions)
    if manifest is None:
        return dict(answers)

    builder = RequestBuilder(prompts_of(manifest), questions, answers)
    verdicts: dict[str, dict[str, Verdict]] = {qid: {} for qid in answers}
    file = predictions.with_name(JUDGEMENTS)
    for judgement in read_judgements(file):
        case = JudgeCase(judgement["kind"], tuple(judgement["qids"]))
        unknown = [qid for qid in case.qids if qid not in builder.questions]
        if unknown:
            raise UserError(f"{file}: question '{unknown[0]}' is not one of this split")

        verdict, request = read_verdict(judgement), builder.build(case)
        if verdict and request and request.version == judgement["prompt"]:
            verdicts[case.qids[0]].setdefault(case.kind, verdict)
    return {qid: JudgedPrediction(qid, answer.text, verdicts[qid]) for qid, answer in answers.items()}


@dataclass
class JudgementLog:
    """What was asked and what it cost; written by one process at a time."""

    handle: BinaryIO
    price: tuple[float, float] | None
    """Of a million tokens in, and out."""
    spent: float = 0.0
    replies: dict[str, list[bool]] = field(default_factory=dict)
    """By version of the request: whether each reply could be read."""

    @staticmethod
    @contextmanager
    def open(file: Path, price: tuple[float, float] | None) -> Iterator[JudgementLog]:
        """Open with all that was saved before. Raises UserError while another process has it."""
        with file.open("a+b") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(f"{file}: another `pave judge` writes it; wait for its end") from error

            # A kill may have cut the last line.
            handle.seek(0)
            handle.truncate(handle.read().rfind(b"\n") + 1)
            log = JudgementLog(handle, price)
            for judgement in read_judgements(file):
                log._count(judgement)
            yield log

    def write(self, request: JudgeRequest, reply: JudgeReply | RequestRefused) -> Judgement:
        """Save a reply, or why there is none, and return its line."""
        judgement: Judgement = {
            "kind": request.case.kind,
            "qids": list(request.case.qids),
            "prompt": request.version,
        }
        if isinstance(reply, RequestRefused):
            judgement["error"] = str(reply)
        else:
            verdict = judge_verdicts.parse(reply.text, request.case.kind)
            judgement["reply"] = reply.text
            judgement["model"] = reply.model
            judgement["tokens_in"] = reply.tokens_in
            judgement["tokens_out"] = reply.tokens_out
            judgement["cost"] = self._cost(reply)
            judgement["verdict"] = verdict._asdict() if verdict else None

        self.handle.write(json.dumps(judgement, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
        self.handle.flush()
        self._count(judgement)
        return judgement

    def _count(self, judgement: Judgement) -> None:
        self.spent += judgement.get("cost") or 0.0
        if "reply" in judgement:
            self.replies.setdefault(judgement["prompt"], []).append(read_verdict(judgement) is not None)

    def _cost(self, reply: JudgeReply) -> float | None:
        if self.price is None or reply.tokens_in is None or reply.tokens_out is None:
            return None
        return (reply.tokens_in * self.price[0] + reply.tokens_out * self.price[1]) / 1e6
