"""`pave score`: predictions in, scores out, always of the whole list of questions. Without torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pave.evaluation import judge_ledger, judge_summary, run_folder
from pave.evaluation.run_folder import EXPECTED, MANIFEST, METRICS, Metrics
from pave.tasks.base import Task, get_task
from pave.tasks.metrics.judge_verdicts import JudgedPrediction
from pave.types import Prediction, Question, UserError
from pave.utils.atomic import write_text
from pave.utils.json_files import read_json

SAMPLES = "samples.jsonl"


class Answers(NamedTuple):
    """The answers of a predictions file."""

    by_qid: dict[str, Prediction]
    """With a judge's verdicts on them, if there are any."""
    missing: list[str]
    """Questions without a line in the file; those that could not be read have one."""


def score(
    predictions: Path, task: str, split: str, root: Path, limit: int | None = None, allow_missing: bool = False
) -> Metrics:
    """Score a predictions file, or a folder of `pave eval`, its parts merged first; write metrics.json, samples.jsonl.

    The first `limit` questions count, or all. Raises UserError for a broken line, and for an unknown, a repeated or,
    unless allowed, a missing question.
    """
    plugin = get_task(task)
    questions = plugin.load(split, root)
    selected = limit_questions(questions, limit)
    if predictions.is_dir():
        predictions = run_folder.merge(predictions, selected)

    answers = read_answers(predictions, questions, selected, allow_missing)
    texts = [answers.by_qid[q.qid].text for q in selected if q.qid in answers.by_qid]
    manifest_file = predictions.with_name(MANIFEST)
    # Predictions from elsewhere have no manifest.
    manifest = read_json(manifest_file, EXPECTED) if manifest_file.is_file() else {}
    result: Metrics = {
        "task": task,
        "split": split,
        "prompts": manifest.get("prompts"),
        "probes": {name: side["probe"] for name, side in manifest.get("sides", {}).items()},
        "about": plugin.describe(split),
        "limit": limit,
        "coverage": {
            "questions": len(questions),
            "asked": len(selected),
            "answered": len(texts),
            "missing": len(answers.missing),
            "empty": sum(not text.strip() for text in texts),
        },
        "unreadable": len(selected) - len(texts) - len(answers.missing),
        "metrics": plugin.score([(q, answers.by_qid.get(q.qid)) for q in selected]),
        "chance": plugin.chance(selected),
    }
    if plugin.needs_judge:
        cases = plugin.judge_cases(selected)
        result["judge"] = judge_summary.summary(predictions, cases, questions, answers.by_qid)

    write_text(predictions.with_name(METRICS), json.dumps(result, indent=1))
    lines = [_sample_line(plugin, question, answers.by_qid.get(question.qid)) for question in selected]
    write_text(predictions.with_name(SAMPLES), "".join(lines))
    return result


def _sample_line(task: Task, question: Question, answer: Prediction | None) -> str:
    """One question and its answer, for people to read."""
    sample: dict[str, object] = {
        "qid": question.qid,
        "video": question.video,
        "group": question.group,
        "prompt": task.prompt(question),
        "answers": question.answers,
        "said": None if answer is None else answer.text,
    }
    if isinstance(answer, JudgedPrediction):
        sample["judged"] = {kind: verdict._asdict() for kind, verdict in answer.verdicts.items()}
    return json.dumps(sample, ensure_ascii=False) + "\n"


def read_answers(
    predictions: Path, questions: Sequence[Question], selected: Sequence[Question], allow_missing: bool = False
) -> Answers:
    """Read the answers of a file to the questions of a split, of which some are asked. Raises UserError as `score`."""
    records = run_folder.read_predictions(predictions, {q.qid for q in questions})
    missing = [q.qid for q in selected if q.qid not in records]
    if missing and not allow_missing:
        raise UserError(
            f"{predictions}: {len(missing)} of {len(selected)} questions have no answer, as '{missing[0]}'; "
            "`pave eval` into the same folder goes on, --allow-missing counts them as wrong"
        )

    answers = {qid: Prediction(qid, record["text"]) for qid, record in records.items() if "text" in record}
    return Answers(judge_ledger.attach_verdicts(predictions, questions, answers), missing)


def limit_questions(questions: Sequence[Question], limit: int | None) -> Sequence[Question]:
    """Take the first `limit` questions, or all. Raises UserError for a limit below one."""
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit}: expected one question at least")
    return questions[:limit]


def prompts_hash(task: Task, questions: Sequence[Question]) -> str:
    """Hash all prompts and their histories to 16 digits."""
    prompts = [[q.qid, task.prompt(q), q.history] for q in questions]
    return hashlib.sha256(json.dumps(prompts).encode()).hexdigest()[:16]


def table(result: Metrics) -> str:
    """Metrics as lines of name and value; then coverage, perturbations and the judge."""
    lines = [f"{name:<20}{value:>10.4g}" for name, value in result["metrics"].items()]

    coverage = result["coverage"]
    counts = {"empty": coverage["empty"], "missing": coverage["missing"], "unreadable": result["unreadable"]}
    parts = [f"coverage: {coverage['answered']} of {coverage['asked']} questions answered"]
    parts += [f"{count} {name}" for name, count in counts.items() if count]
    lines.append(", ".join(parts))
    if coverage["asked"] < coverage["questions"]:
        lines.append(f"ONLY THE FIRST {coverage['asked']} of {coverage['questions']} questions (--limit)")

    lines += [f"side-channel {name}: {perturbation}" for name, perturbation in result["probes"].items() if perturbation]
    if "judge" in result:
        lines += judge_summary.summary_lines(result["judge"])
    return "\n".join(lines)
