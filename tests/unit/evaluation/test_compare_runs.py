"""Two runs on the same questions: intervals and tests against independent computations, flips, reports."""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pave.cli import main
from pave.evaluation import compare_runs
from pave.tasks import scanqa
from pave.types import Prediction, Question, UserError


def questions(videos: int, each: int) -> list[Question]:
    return [
        Question(f"{v}-{i}", f"{v}.mp4", "?", ("yes",), "odd | all" if v % 2 else "even | all")
        for v in range(videos)
        for i in range(each)
    ]


def said(asked: list[Question], right: np.ndarray) -> dict[str, Prediction]:
    return {q.qid: Prediction(q.qid, "yes" if ok else "no") for q, ok in zip(asked, right)}


def share(pairs: list[tuple[Question, Prediction | None]]) -> dict[str, float]:
    right = [p is not None and p.text in q.answers for q, p in pairs]
    return {"accuracy": float(np.mean(right)), "n": len(pairs), "longest": max(len(p.text) for _, p in pairs if p)}


TASK = SimpleNamespace(score=share, score_each=share)


def test_intervals_are_of_videos_not_of_questions() -> None:
    """All questions of a video are answered alike, so there are 40 independent things, not 400."""
    rng, asked = np.random.default_rng(1), questions(40, 10)
    a, b = rng.random(40) < 0.5, rng.random(40) < 0.9
    compared = compare_runs.compare(TASK, asked, said(asked, a.repeat(10)), said(asked, b.repeat(10)))
    (row,) = compared.rows
    assert (row.what, row.n) == ("accuracy", 400)
    assert (row.a, row.b) == (a.mean(), b.mean())
    error = a.std() / np.sqrt(40)  # of a mean of 40
    assert row.a_high - row.a_low == pytest.approx(2 * 1.96 * error, rel=0.15)
    error = (b.astype(int) - a).std() / np.sqrt(40)
    assert row.high - row.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert row.low <= row.difference <= row.high
    assert [(g.what, g.n) for g in compared.groups] == [("all", 400), ("even", 200), ("odd", 200)]
    assert compared.whole.keys() == {"n", "longest"}


def test_p_is_that_of_all_exchanges() -> None:
    """With ten videos all 1,024 exchanges can be counted."""
    asked = questions(10, 2)
    a, b = np.zeros(20, bool), np.zeros(20, bool)
    b[:14], a[16:18] = True, True
    (row,) = compare_runs.compare(TASK, asked, said(asked, a), said(asked, b)).rows
    change = (b.astype(int) - a).reshape(10, 2).sum(1)
    every = [abs(np.dot(signs, change)) >= abs(change.sum()) for signs in product((-1, 1), repeat=10)]
    assert row.p == pytest.approx(np.mean(every), abs=0.006)
    (same,) = compare_runs.compare(TASK, asked, said(asked, a), said(asked, a)).rows
    assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_metrics_of_a_part_of_the_questions() -> None:
    """As sideworld has them: a question knows the metric of its own kind only."""

    def by_kind(pairs: list[tuple[Question, Prediction | None]]) -> dict[str, float]:
        kinds = {q.group.split(" ")[0] for q, _ in pairs}
        return {k: share([p for p in pairs if p[0].group.startswith(k)])["accuracy"] for k in sorted(kinds)}

    asked = questions(4, 3)
    a, b = np.arange(12) % 2 == 0, np.arange(12) % 3 == 0
    compared = compare_runs.compare(
        SimpleNamespace(score=by_kind, score_each=by_kind), asked, said(asked, a), said(asked, b)
    )
    assert [(row.what, row.n) for row in compared.rows] == [("even", 6), ("odd", 6)]
    assert len(compared.flips) == sum(a != b)
    assert {f.qid for f in compared.flips if f.better == "a"} == {q.qid for q, x, y in zip(asked, a, b) if x and not y}


def test_caption_metrics_have_no_interval() -> None:
    asked = questions(3, 2)
    runs = [said(asked, np.arange(6) < k) for k in (2, 5)]
    compared = compare_runs.compare(scanqa.Task(), asked, *runs)
    assert "CIDEr" in compared.whole
    assert {"EM", "EM_leo"} <= {row.what for row in compared.rows}


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields = [
        {
            "question_id": f"q{i}",
            "scene_id": f"scene000{i // 3}_00",
            "question": "What is it?",
            "answers": ["a <b>chair</b>"],
            "object_ids": [],
            "object_names": [],
        }
        for i in range(6)
    ]
    (tmp_path / "qa").mkdir()
    (tmp_path / "qa/ScanQA_v1.0_val.json").write_text(json.dumps(fields))
    for run, right in (("a", 2), ("b", 6)):
        (tmp_path / run).mkdir()
        lines = [{"qid": f"q{i}", "text": "a <b>chair</b>" if i < right else "a table"} for i in range(6)]
        (tmp_path / run / "predictions.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    argv = ["compare", f"{tmp_path}/a", f"{tmp_path}/b", "--task", "scanqa", "--data", str(tmp_path), "--split", "val"]
    assert main.main([*argv, "--out", f"{tmp_path}/out"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"\| EM \| 6 \| 0\.333 \[.*\| 1\.000 \[1\.000, 1\.000\] \| \+0\.667", text)
    assert "4 answers flipped: 4 right in B only, 0 in A only" in text
    flips = [json.loads(line) for line in (tmp_path / "out/flips.jsonl").read_text().splitlines()]
    assert [f["qid"] for f in flips] == ["q2", "q3", "q4", "q5"]
    page = (tmp_path / "out/report.html").read_text()
    assert "a &lt;b&gt;chair&lt;/b&gt;" in page
    assert "<b>chair" not in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page), "nothing from outside"
    assert json.loads((tmp_path / "out/report.json").read_text())["flips"] == 4
    assert main.main(["compare", f"{tmp_path}/a", "--out", f"{tmp_path}/out"]) == 1
    assert "give two runs with --task" in capsys.readouterr().err
    (tmp_path / "b/predictions.jsonl").write_text('{"qid": "q0", "text": "x"}\n')
    assert main.main([*argv, "--out", f"{tmp_path}/out"]) == 1
    assert "5 of 6 questions have no answer" in capsys.readouterr().err


def test_a_file_of_other_questions_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"qid": "other", "text": "x"}\n')
    from pave.evaluation import score

    with pytest.raises(UserError, match="question 'other' is not one of this split"):
        score.read_answers(tmp_path / "p.jsonl", questions(1, 1), questions(1, 1))
