"""`pave score`: answers in, scores out, always of the whole list of questions. Without torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pave.evaluation import judge_ledger
from pave.evaluation.run_folder import EXPECTED, MANIFEST, METRICS, merge, read_predictions
from pave.tasks.base import Task, get_task
from pave.tasks.metrics.judge_verdicts import JudgedPrediction
from pave.types import Prediction, Question, UserError
from pave.utils.atomic import write_text
from pave.utils.json_files import read_json

SAMPLES = "samples.jsonl"


def score(
    predictions: Path, task: str, split: str, root: Path, limit: int | None = None, allow_missing: bool = False
) -> dict[str, Any]:
    """Score a predictions file, or a folder of `pave eval`, its parts merged first; writes metrics.json, samples.jsonl.

    Of the first `limit` questions, or all. Raises UserError for a broken line, and for an unknown, a repeated or,
    unless allowed, a missing question.
    """
    benchmark = get_task(task)
    gold: list[Question] = benchmark.load(split, root)
    asked = limit_questions(gold, limit)
    if predictions.is_dir():
        predictions = merge(predictions, asked)
    answers, missing = read_answers(predictions, gold, asked, allow_missing)
    said = [answers[q.qid].text for q in asked if q.qid in answers]
    result = {
        "task": task,
        "split": split,
        **_asked_how(predictions.with_name(MANIFEST)),
        "about": benchmark.describe(split),
        "limit": limit,
        "coverage": {
            "questions": len(gold),
            "asked": len(asked),
            "answered": len(said),
            "missing": len(missing),
            "empty": sum(not text.strip() for text in said),
        },
        "unreadable": len(asked) - len(said) - len(missing),
        "metrics": benchmark.score([(q, answers.get(q.qid)) for q in asked]),
        "chance": benchmark.chance(asked),
    }
    if benchmark.needs_judge:
        result["judge"] = judge_ledger.summary(predictions, benchmark.judge_cases(asked), gold, answers)
    write_text(predictions.with_name(METRICS), json.dumps(result, indent=1))
    write_text(predictions.with_name(SAMPLES), "".join(_sample(benchmark, q, answers.get(q.qid)) for q in asked))
    return result


def _sample(benchmark: Task, question: Question, answer: Prediction | None) -> str:
    """One line to read: what was asked about what, what is right, what was said."""
    sample: dict[str, object] = {
        "qid": question.qid,
        "video": question.video,
        "group": question.group,
        "prompt": benchmark.prompt(question),
        "answers": question.answers,
        "said": None if answer is None else answer.text,
    }
    if isinstance(answer, JudgedPrediction):
        sample["judged"] = {kind: verdict._asdict() for kind, verdict in answer.verdicts.items()}
    return json.dumps(sample, ensure_ascii=False) + "\n"


def read_answers(
    predictions: Path, gold: Sequence[Question], asked: Sequence[Question], allow_missing: bool = False
) -> tuple[dict[str, Prediction], list[str]]:
    """The answers of a file by question, with a judge's verdicts, and which of those asked have none.

    Raises UserError as `score`.
    """
    records = read_predictions(predictions, {q.qid for q in gold})
    missing = [q.qid for q in asked if q.qid not in records]
    if missing and not allow_missing:
        raise UserError(
            f"{predictions}: {len(missing)} of {len(asked)} questions have no answer, as '{missing[0]}'; "
            "`pave eval` into the same folder goes on, --allow-missing counts them as wrong"
        )
    answers = {qid: Prediction(qid, record["text"]) for qid, record in records.items() if "text" in record}
    return judge_ledger.attach_verdicts(predictions, gold, answers), missing


def _asked_how(manifest: Path) -> dict[str, Any]:
    """What the results say of how the questions were asked; nothing is known of answers from elsewhere."""
    written = read_json(manifest, EXPECTED) if manifest.is_file() else {}
    sides = written.get("sides", {})
    return {"prompts": written.get("prompts"), "probes": {name: side["probe"] for name, side in sides.items()}}


def limit_questions(questions: Sequence[Question], limit: int | None) -> Sequence[Question]:
    """The questions to be asked. Raises UserError for a limit below one."""
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit}: expected one question at least")
    return questions[:limit]


def prompts_hash(task: Task, questions: Sequence[Question]) -> str:
    """Which words a model is given, in 16 digits: a hash of every prompt with its history."""
    said = [[q.qid, task.prompt(q), q.history] for q in questions]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


def table(result: Mapping[str, Any]) -> str:
    """Metrics as lines of name and value; below them what they are of, and how they were asked where it was unusual."""
    lines = [f"{name:<20}{value:>10.4g}" for name, value in result["metrics"].items()]
    coverage = result["coverage"]
    counts = [f"{count} {what}" for what in ("empty", "missing") if (count := coverage[what])]
    counts += [f"{result['unreadable']} unreadable"] if result["unreadable"] else []
    lines.append(", ".join([f"coverage: {coverage['answered']} of {coverage['asked']} questions answered", *counts]))
    if coverage["asked"] < coverage["questions"]:
        lines.append(f"ONLY THE FIRST {coverage['asked']} of {coverage['questions']} questions (--limit)")
    lines += [f"side-channel {name}: {probe}" for name, probe in result["probes"].items() if probe]
    lines += judge_ledger.summary_lines(result["judge"]) if "judge" in result else []
    return "\n".join(lines)
