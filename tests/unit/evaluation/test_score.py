"""Scores are of the whole list of questions, from the files alone, fast and without torch."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.eval_runs import ASKED, results
from helpers.tiny_model import TinySetup

from pave.evaluation import run_folder, score
from pave.tasks import avqa, sideworld
from pave.types import UserError

pytest_plugins = ["helpers.eval_runs"]


def test_the_order_of_parts_and_lines_changes_nothing(whole: Path, tmp_path: Path, tiny_setup: TinySetup) -> None:
    shutil.copytree(whole, tmp_path / "out")
    parts = tmp_path / "out" / run_folder.PARTS
    lines = [line for file in parts.iterdir() for line in file.read_text().splitlines()]
    for file in parts.iterdir():
        file.unlink()
    random.Random(0).shuffle(lines)
    # One was unreadable at first, one was answered twice.
    qid, twice = json.loads(lines[0])["qid"], json.loads(lines[1])
    lines += [json.dumps({"qid": qid, "error": "no such file"}), json.dumps({**twice, "text": "~"})]
    for order in (lines, lines[::-1]):
        (parts / "a.jsonl").write_text("\n".join(order[:7]))
        (parts / "b.jsonl").write_text("\n".join(order[7:]) + "\n")
        result = score.score(tmp_path / "out", "sideworld", "train", tiny_setup.data)
        assert results(tmp_path / "out") == results(whole)
        assert result["coverage"]["answered"] == ASKED


def test_a_broken_line_that_no_kill_leaves_is_an_error(whole: Path, tmp_path: Path, tiny_setup: TinySetup) -> None:
    shutil.copytree(whole, tmp_path / "out")
    file = next(f for f in (tmp_path / "out" / run_folder.PARTS).iterdir() if f.stat().st_size)
    file.write_text(file.read_text().replace("\n", '\n{"qid": "tr\n', 1))
    with pytest.raises(UserError, match=rf"{file.name}:2: cannot be read .* a prediction"):
        score.score(tmp_path / "out", "sideworld", "train", tiny_setup.data)
    with pytest.raises(UserError, match="no folder parts in it"):
        score.score(tmp_path, "sideworld", "train", tiny_setup.data)


def test_a_deleted_answer_is_an_error_or_counted(whole: Path, tmp_path: Path, tiny_setup: TinySetup) -> None:
    lines = (whole / run_folder.PREDICTIONS).read_text().splitlines(keepends=True)
    qid = json.loads(lines[3])["qid"]
    file = tmp_path / "predictions.jsonl"
    file.write_text("".join(lines[:3] + lines[4:]))
    with pytest.raises(UserError, match=rf"1 of 20 questions have no answer, as '{qid}'"):
        score.score(file, "sideworld", "train", tiny_setup.data)
    result = score.score(file, "sideworld", "train", tiny_setup.data, allow_missing=True)
    assert result["metrics"]["n"] == ASKED
    assert result["coverage"]["missing"] == 1
    assert re.search(r"coverage: 19 of 20 questions answered, .*1 missing$", score.table(result))


def test_any_unicode_in_an_answer_moves_no_other(tmp_path: Path, tiny_setup: TinySetup) -> None:
    questions = sideworld.Task().load("train", tiny_setup.data)
    odd = '\u2028\u2029\x85\r\x0b\x1c\n\t🎻\ufeff\\"{}'
    (tmp_path / run_folder.PARTS).mkdir()
    for i, q in enumerate(questions):
        record = {"qid": q.qid, "text": odd if i % 2 else q.answers[0]}
        with (tmp_path / run_folder.PARTS / f"{i % 3}.jsonl").open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(record, ensure_ascii=bool(i % 4)) + "\n")
    result = score.score(tmp_path, "sideworld", "train", tiny_setup.data)
    right = sum(result["metrics"][kind] for kind in ("which_sound", "who_jumped")) / 2
    assert result["coverage"]["answered"] == ASKED
    assert right == result["metrics"]["audio"] == 0.5
    assert score.score(tmp_path / run_folder.PREDICTIONS, "sideworld", "train", tiny_setup.data) == result


def test_ten_thousand_letters_are_scored_fast_and_without_torch(tmp_path: Path) -> None:
    rows = [
        {"id": i, "video_name": f"v{i}", "question_text": "Which?", "multi_choice": list("wxyz"), "answer": i % 4}
        | {"question_relation": "Both", "question_type": "Which"}
        for i in range(10_000)
    ]
    (tmp_path / "annotation").mkdir()
    (tmp_path / "annotation/val_qa.json").write_text(json.dumps(rows))
    file = tmp_path / "predictions.jsonl"
    file.write_text("".join(json.dumps({"qid": str(i), "text": "ABCD"[i % 3]}) + "\n" for i in range(10_000)))
    words = ["score", str(file), "--task", "avqa", "--data", str(tmp_path), "--split", "val"]
    code = f"import sys, time; from pave.cli import main\nassert main.main({words}) == 0\n"
    code += "assert not {'torch', 'transformers'} & set(sys.modules)\nassert time.process_time() < 2"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "coverage: 10000 of 10000 questions answered" in done.stdout
    assert json.loads((tmp_path / run_folder.METRICS).read_text())["about"] == avqa.Task().describe("val")


def test_scoring_the_small_world_needs_no_torch(whole: Path, tiny_setup: TinySetup) -> None:
    words = ["score", str(whole), "--task", "sideworld", "--data", str(tiny_setup.data), "--split", "train"]
    code = f"import sys; from pave.cli import main\nassert main.main({words}) == 0\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_samples_can_be_read_one_by_one(whole: Path, tmp_path: Path, tiny_setup: TinySetup) -> None:
    shutil.copytree(whole, tmp_path / "out")
    score.score(tmp_path / "out", "sideworld", "train", tiny_setup.data)
    lines = [json.loads(line) for line in (tmp_path / "out" / score.SAMPLES).read_text().splitlines()]
    questions = sideworld.Task().load("train", tiny_setup.data)
    assert [line["qid"] for line in lines] == [q.qid for q in questions][: len(lines)]
    assert len(lines) == ASKED
    said = {x["qid"]: x["text"] for x in map(json.loads, (tmp_path / "out" / run_folder.PREDICTIONS).open())}
    for line, question in zip(lines, questions):
        assert line["said"] == said[line["qid"]]
        assert (line["prompt"], line["answers"]) == (sideworld.Task().prompt(question), list(question.answers))
