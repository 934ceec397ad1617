"""Scores are of the whole list of questions, from the files alone, without torch."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path

import pytest
from helpers.eval_runs import NUM_QUESTIONS, results, run_without
from helpers.tiny_model import TinySetup

from pave.evaluation import run_folder, score
from pave.tasks import avqa, sideworld
from pave.types import UserError

pytest_plugins = ["helpers.eval_runs"]


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "out")


def test_the_order_of_parts_and_lines_changes_nothing(finished: Path, copy: Path, tiny_setup: TinySetup) -> None:
    parts = copy / run_folder.PARTS
    lines = [line for file in parts.iterdir() for line in file.read_text().splitlines()]
    shutil.rmtree(parts)
    parts.mkdir()
    random.Random(0).shuffle(lines)
    # One question was unreadable at first, one was answered twice.
    unreadable = {"qid": json.loads(lines[0])["qid"], "error": "no such file"}
    lines += [json.dumps(unreadable), json.dumps({**json.loads(lines[1]), "text": "~"})]
    for order in (lines, lines[::-1]):
        (parts / "a.jsonl").write_text("\n".join(order[:7]))
        (parts / "b.jsonl").write_text("\n".join(order[7:]) + "\n")
        result = score.score(copy, "sideworld", "train", tiny_setup.data)
        assert results(copy) == results(finished)
        assert result["coverage"]["answered"] == NUM_QUESTIONS


def test_a_broken_line_that_no_kill_leaves_is_an_error(copy: Path, tmp_path: Path, tiny_setup: TinySetup) -> None:
    file = next(f for f in (copy / run_folder.PARTS).iterdir() if f.stat().st_size)
    file.write_text(file.read_text().replace("\n", '\n{"qid": "tr\n', 1))
    with pytest.raises(UserError, match=rf"{file.name}:2: .*expected a prediction"):
        score.score(copy, "sideworld", "train", tiny_setup.data)
    with pytest.raises(UserError, match="no folder parts in it"):
        score.score(tmp_path, "sideworld", "train", tiny_setup.data)


def test_a_deleted_answer_is_an_error_or_counted(finished: Path, tmp_path: Path, tiny_setup: TinySetup) -> None:
    lines = (finished / run_folder.PREDICTIONS).read_text().splitlines(keepends=True)
    qid = json.loads(lines.pop(3))["qid"]
    file = tmp_path / "predictions.jsonl"
    file.write_text("".join(lines))
    with pytest.raises(UserError, match=rf"1 of 20 questions have no answer, as '{qid}'"):
        score.score(file, "sideworld", "train", tiny_setup.data)
    result = score.score(file, "sideworld", "train", tiny_setup.data, allow_missing=True)
    assert result["metrics"]["n"] == NUM_QUESTIONS
    assert result["coverage"]["missing"] == 1
    assert re.search(r"coverage: 19 of 20 questions answered, .*1 missing$", score.table(result))


def test_any_unicode_in_an_answer_moves_no_other(tmp_path: Path, tiny_setup: TinySetup) -> None:
    line_breaks = '\u2028\u2029\x85\r\x0b\x1c\n\t🎻\ufeff\\"{}'
    (tmp_path / run_folder.PARTS).mkdir()
    for i, question in enumerate(sideworld.Task().load("train", tiny_setup.data)):
        record = {"qid": question.qid, "text": line_breaks if i % 2 else question.answers[0]}
        with (tmp_path / run_folder.PARTS / f"{i % 3}.jsonl").open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(record, ensure_ascii=bool(i % 4)) + "\n")
    result = score.score(tmp_path, "sideworld", "train", tiny_setup.data)
    assert result["coverage"]["answered"] == NUM_QUESTIONS
    by_kind = sum(result["metrics"][kind] for kind in ("which_sound", "who_jumped")) / 2
    assert by_kind == result["metrics"]["audio"] == 0.5
    assert score.score(tmp_path / run_folder.PREDICTIONS, "sideworld", "train", tiny_setup.data) == result


def test_scoring_needs_no_torch(finished: Path, tmp_path: Path, tiny_setup: TinySetup) -> None:
    argv = ["score", str(finished), "--task", "sideworld", "--data", str(tiny_setup.data), "--split", "train"]
    run_without(["torch", "transformers"], argv)

    question = {"question_text": "Which?", "multi_choice": list("wxyz"), "question_relation": "Both"}
    rows = [{"id": i, "video_name": f"v{i}", "answer": i % 4, "question_type": "Which", **question} for i in range(100)]
    (tmp_path / "annotation").mkdir()
    (tmp_path / "annotation/val_qa.json").write_text(json.dumps(rows))
    file = tmp_path / "predictions.jsonl"
    file.write_text("".join(json.dumps({"qid": str(i), "text": "ABCD"[i % 3]}) + "\n" for i in range(100)))
    argv = ["score", str(file), "--task", "avqa", "--data", str(tmp_path), "--split", "val"]
    assert "coverage: 100 of 100 questions answered" in run_without(["torch", "transformers"], argv)
    assert json.loads((tmp_path / run_folder.METRICS).read_text())["about"] == avqa.Task().describe("val")


def test_samples_can_be_read_one_by_one(copy: Path, tiny_setup: TinySetup) -> None:
    score.score(copy, "sideworld", "train", tiny_setup.data)
    samples = [json.loads(line) for line in (copy / score.SAMPLES).read_text().splitlines()]
    texts = {line["qid"]: line["text"] for line in map(json.loads, (copy / run_folder.PREDICTIONS).open())}
    task = sideworld.Task()
    questions = task.load("train", tiny_setup.data)
    assert len(samples) == len(questions) == NUM_QUESTIONS
    for sample, question in zip(samples, questions):
        expected = (question.qid, texts[question.qid], task.prompt(question), list(question.answers))
        assert (sample["qid"], sample["said"], sample["prompt"], sample["answers"]) == expected
