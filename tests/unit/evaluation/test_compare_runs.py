"""Two runs on the same questions: intervals and tests against independent computations, flips, reports."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from pave.cli import main
from pave.evaluation import compare_runs, score
from pave.tasks import scanqa
from pave.tasks.base import Pair, Scores, Task
from pave.types import Prediction, Question, UserError


def make_questions(videos: int, per_video: int) -> list[Question]:
    return [
        Question(f"{v}-{i}", f"{v}.mp4", "?", ("yes",), "odd | all" if v % 2 else "even | all")
        for v in range(videos)
        for i in range(per_video)
    ]


def make_answers(questions: list[Question], is_right: np.ndarray) -> dict[str, Prediction]:
    return {q.qid: Prediction(q.qid, "yes" if right else "no") for q, right in zip(questions, is_right)}


def accuracy(pairs: Iterable[Pair]) -> Scores:
    pairs = list(pairs)
    is_right = [p is not None and p.text in q.answers for q, p in pairs]
    longest = max(len(p.text) for _, p in pairs if p)
    return {"accuracy": float(np.mean(is_right)), "n": len(pairs), "longest": longest}


def by_group(pairs: Iterable[Pair]) -> Scores:
    """As sideworld scores: a question knows the metric of its own kind only."""
    pairs = list(pairs)
    kinds = sorted({q.group.split(" ")[0] for q, _ in pairs})
    return {kind: accuracy(p for p in pairs if p[0].group.startswith(kind))["accuracy"] for kind in kinds}


def compare(
    questions: list[Question], a: np.ndarray, b: np.ndarray, metric: Callable[[Iterable[Pair]], Scores] = accuracy
) -> compare_runs.Comparison:
    class Scored(Task):
        def load(self, split: str, root: Path) -> list[Question]:
            return questions

        def score(self, pairs: Iterable[Pair]) -> Scores:
            return metric(pairs)

    return compare_runs.compare(Scored(), questions, make_answers(questions, a), make_answers(questions, b))


def test_intervals_are_of_videos_not_of_questions() -> None:
    """All questions of a video are answered alike, so there are 40 independent things, not 400."""
    rng = np.random.default_rng(1)
    a, b = rng.random(40) < 0.5, rng.random(40) < 0.9
    comparison = compare(make_questions(40, 10), a.repeat(10), b.repeat(10))
    (row,) = comparison.rows
    assert (row.what, row.n, row.a, row.b) == ("accuracy", 400, a.mean(), b.mean())
    error = a.std() / np.sqrt(40)  # of a mean of 40
    assert row.a_high - row.a_low == pytest.approx(2 * 1.96 * error, rel=0.15)
    error = (b.astype(int) - a).std() / np.sqrt(40)
    assert row.high - row.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert row.low <= row.difference <= row.high
    assert [(g.what, g.n) for g in comparison.groups] == [("all", 400), ("even", 200), ("odd", 200)]
    assert comparison.whole.keys() == {"n", "longest"}


def test_p_is_that_of_all_exchanges() -> None:
    """With ten videos all 1,024 exchanges can be counted."""
    questions = make_questions(10, 2)
    a, b = np.zeros(20, bool), np.zeros(20, bool)
    b[:14], a[16:18] = True, True
    (row,) = compare(questions, a, b).rows
    change = (b.astype(int) - a).reshape(10, 2).sum(1)
    exchanges = [abs(np.dot(signs, change)) >= abs(change.sum()) for signs in product((-1, 1), repeat=10)]
    assert row.p == pytest.approx(np.mean(exchanges), abs=0.006)
    (same,) = compare(questions, a, a).rows
    assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_metrics_of_a_part_of_the_questions() -> None:
    questions = make_questions(4, 3)
    a, b = np.arange(12) % 2 == 0, np.arange(12) % 3 == 0
    comparison = compare(questions, a, b, by_group)
    assert [(row.what, row.n) for row in comparison.rows] == [("even", 6), ("odd", 6)]
    assert len(comparison.flips) == sum(a != b)
    better_in_a = {flip.qid for flip in comparison.flips if flip.better == "a"}
    assert better_in_a == {q.qid for q, x, y in zip(questions, a, b) if x and not y}


def test_caption_metrics_have_no_interval() -> None:
    questions = make_questions(3, 2)
    runs = [make_answers(questions, np.arange(6) < k) for k in (2, 5)]
    comparison = compare_runs.compare(scanqa.Task(), questions, *runs)
    assert "CIDEr" in comparison.whole
    assert {"EM", "EM_leo"} <= {row.what for row in comparison.rows}


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    annotation = {"question": "What is it?", "answers": ["a <b>chair</b>"], "object_ids": [], "object_names": []}
    questions = [{"question_id": f"q{i}", "scene_id": f"scene000{i // 3}_00", **annotation} for i in range(6)]
    (tmp_path / "qa").mkdir()
    (tmp_path / "qa/ScanQA_v1.0_val.json").write_text(json.dumps(questions))
    for run, num_right in (("a", 2), ("b", 6)):
        (tmp_path / run).mkdir()
        lines = [{"qid": f"q{i}", "text": "a <b>chair</b>" if i < num_right else "a table"} for i in range(6)]
        (tmp_path / run / "predictions.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    argv = ["compare", f"{tmp_path}/a", f"{tmp_path}/b", "--task", "scanqa", "--data", str(tmp_path), "--split", "val"]
    assert main.main([*argv, "--out", f"{tmp_path}/out"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"\| EM \| 6 \| 0\.333 \[.*\| 1\.000 \[1\.000, 1\.000\] \| \+0\.667", text)
    assert "4 answers flipped: 4 right in B only, 0 in A only" in text
    flips = [json.loads(line) for line in (tmp_path / "out/flips.jsonl").read_text().splitlines()]
    assert [flip["qid"] for flip in flips] == ["q2", "q3", "q4", "q5"]
    page = (tmp_path / "out/report.html").read_text()
    assert "a &lt;b&gt;chair&lt;/b&gt;" in page
    assert "<b>chair" not in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page), "nothing from outside"
    assert json.loads((tmp_path / "out/report.json").read_text())["flips"] == 4
    (tmp_path / "b/predictions.jsonl").write_text('{"qid": "q0", "text": "x"}\n')
    assert main.main([*argv, "--out", f"{tmp_path}/out"]) == 1
    assert "5 of 6 questions have no answer" in capsys.readouterr().err


def test_a_file_of_other_questions_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"qid": "other", "text": "x"}\n')
    with pytest.raises(UserError, match="question 'other' is not one of this split"):
        score.read_answers(tmp_path / "p.jsonl", make_questions(1, 1), make_questions(1, 1))
