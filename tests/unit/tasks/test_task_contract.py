"""The contract of pave/tasks/base.py, for every task and split on tiny data in its true layout."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers.no_meteor import without_meteor as without_meteor
from helpers.paths import FIXTURES
from helpers.task_data import write_open_ended, write_others

from pave.cli import data_commands
from pave.tasks.base import Task, TrainingOnlyTask, get_task
from pave.tasks.metrics.judge_prompts import JUDGE_PROMPTS
from pave.tasks.metrics.judge_verdicts import JudgedPrediction, Verdict
from pave.types import Prediction, Question, UserError
from pave.utils import registry

QUESTIONS = {
    "activitynet_qa": {"train": 3, "val": 3, "test": 3},
    "avqa": {"train": 2, "val": 3},
    "avsd": {"train": 1, "test": 3, "test_multiref": 3},
    "egoexo": {"train": 1, "val": 3, "val_action": 3, "val_short": 3},
    "llava_video": {"train": 6},
    "mlvu": {"dev": 10, "test": 3, "dev_packed": 2, "test_packed": 2},
    "msrvtt_qa": {"test": 3, "test_qa": 3, "val_qa": 3, "train_qa": 3},
    "msvd_qa": {"test": 3, "test_qa": 3, "val_qa": 3, "train_qa": 3},
    "music_avqa": {"train": 5, "test": 5, "test_original": 6},
    "mvbench": {"test": 40, "state_change": 2},
    "preference": {"train": 2},
    "scanqa": {"train": 1, "val": 3},
    "sideworld": {"train": 22, "test": 22, "channels": 16},
    "sqa3d": {"train": 1, "test": 4, "test_task": 4},
    "tgif_qa": {"test": 3},
    "vcgbench": {"test": 7, "generic": 2, "temporal": 1, "consistency": 4},
    "videochat2_it": {"train": 3},
    "videomme": {"test": 4, "test_subtitles": 4},
}
"""Number of questions in the tiny data of each split."""
METRICS = {
    ("activitynet_qa", "test"): ("accuracy", "accuracy_judged"),
    ("avqa", "val"): ("accuracy", "strict"),
    ("avsd", "test"): ("ROUGE_L", "BLEU-4"),
    ("egoexo", "val"): ("accuracy", "strict"),
    ("mlvu", "test"): ("accuracy", "accuracy macro", "accuracy_mcq", "strict"),
    ("mlvu", "dev_packed"): ("accuracy", "accuracy_mcq", "strict"),
    ("mlvu", "test_packed"): ("accuracy", "accuracy_mcq", "strict"),
    ("msrvtt_qa", "test_qa"): ("accuracy", "accuracy_judged"),
    ("msvd_qa", "test"): ("accuracy", "accuracy_judged"),
    ("music_avqa", "test"): ("accuracy", "strict"),
    ("mvbench", "test"): ("accuracy", "micro", "official", "strict"),
    ("mvbench", "action_prediction"): ("accuracy", "micro", "official", "strict"),
    ("scanqa", "val"): ("EM", "EM_refined", "EM_leo", "EM_raw", "ROUGE_L"),
    ("sideworld", "test"): ("audio",),
    ("sqa3d", "test"): ("EM", "EM_refined"),
    ("tgif_qa", "test"): ("accuracy", "accuracy_judged"),
    ("vcgbench", "test"): ("mean", "mean_judged"),
    ("videomme", "test"): ("accuracy", "accuracy_mcq", "answered", "strict"),
    ("videomme", "test_subtitles"): ("accuracy", "accuracy_mcq", "answered", "strict"),
}
"""What perfect answers bring to the highest value, by task and split."""
SPLITS = [(name, split) for name, splits in QUESTIONS.items() for split in splits]
ODD_TEXT = "\u2028\r\x85\x0b\x1c\u2029\n\ud800\u202e\U0001f600\u0000 "


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("written")
    write_open_ended(root)
    write_others(root)
    return root


def load(name: str, split: str, written: Path) -> list[Question]:
    folder = FIXTURES if (FIXTURES / name).is_dir() else written
    return get_task(name).load(split, folder / name)


def answer(task: Task, questions: Sequence[Question], texts: Sequence[str]) -> list[Prediction | None]:
    """Predictions; for a judged task with the verdicts of a judge to whom only the reference is right."""
    if not task.needs_judge:
        return [Prediction(question.qid, text) for question, text in zip(questions, texts)]
    kinds: dict[str, list[str]] = {question.qid: [] for question in questions}
    for case in task.judge_cases(questions):
        kinds[case.qids[0]].append(case.kind)
    predictions: list[Prediction | None] = []
    for question, text in zip(questions, texts):
        verdict = Verdict(5, True) if text == question.answers[0] else Verdict(0, False)
        predictions.append(JudgedPrediction(question.qid, text, dict.fromkeys(kinds[question.qid], verdict)))
    return predictions


def test_every_plugin_is_here() -> None:
    assert list(QUESTIONS) == registry.names("tasks")
    prepared = tuple(name for name in QUESTIONS if get_task(name).prepares)
    assert prepared == data_commands.CONVERTED_TASKS
    for name in QUESTIONS:
        task = get_task(name)
        assert task.name == name
        assert {*task.files, *task.expected_counts} <= set(task.splits)


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_every_split_loads(name: str, split: str, written: Path) -> None:
    task, questions = get_task(name), load(name, split, written)
    assert split in task.splits
    assert len(questions) == len({question.qid for question in questions}) == QUESTIONS[name][split]
    assert questions == load(name, split, written)
    for question in questions:
        assert task.prompt(question).strip()
        assert "<" not in task.prompt(question)
        assert task.target(question) == question.answers[0] != ""
        assert not Path(question.video).is_absolute()
        assert ".." not in Path(question.video).parts
    assert {"prompt", "references"} <= set(task.describe(split)) or name == "sideworld"


@pytest.mark.parametrize("name", QUESTIONS)
def test_no_such_split_or_file(name: str, tmp_path: Path) -> None:
    task = get_task(name)
    split = task.splits[0]
    with pytest.raises(UserError, match=f"{name} has no split named '{split}n'; did you mean '{split}'"):
        task.load(f"{split}n", FIXTURES / name)
    with pytest.raises(UserError, match=r"\.(jsonl?|parquet): (no such annotation file|not found)"):
        task.load(split, tmp_path)
    if not task.prepares:
        with pytest.raises(UserError, match=f"{name}: there is nothing to prepare"):
            task.prepare(tmp_path, tmp_path)


@pytest.mark.parametrize(("name", "split"), METRICS)
def test_right_wrong_and_missing_answers(name: str, split: str, written: Path) -> None:
    task, questions = get_task(name), load(name, split, written)
    references = [question.answers[0] for question in questions]
    right = answer(task, questions, references)
    wrong = answer(task, questions, references[1:] + references[:1])
    best = task.score(iter(zip(questions, right)))
    assert (best["n"], best["missing"], best.get("empty", 0)) == (len(questions), 0, 0)

    one_missing = task.score(zip(questions, [None, *right[1:]]))
    assert (one_missing["n"], one_missing["missing"]) == (len(questions), 1)
    all_missing = task.score([(question, None) for question in questions])
    assert all_missing["missing"] == len(questions)
    for metric in METRICS[name, split]:
        assert best[metric] == pytest.approx(5 if name == "vcgbench" else 1), metric
        assert task.score(zip(questions, wrong))[metric] < best[metric], metric
        if not metric.endswith("_judged"):  # of readable verdicts alone
            assert one_missing[metric] < best[metric], metric
            assert all_missing[metric] == pytest.approx(0, abs=1e-3), metric
    assert set(task.score([]).values()) == {0}


@pytest.mark.parametrize(("name", "split"), METRICS)
def test_order_and_odd_letters_of_other_answers_do_not_matter(name: str, split: str, written: Path) -> None:
    task, questions = get_task(name), load(name, split, written)
    pairs = list(zip(questions, answer(task, questions, [question.answers[0] for question in questions])))
    best = task.score(pairs)
    if name != "vcgbench":  # whose pairs of questions follow one another
        assert task.score(pairs[::-1]) == pytest.approx(best)
    (odd,) = answer(task, questions[:1], [ODD_TEXT])
    scores = task.score([(questions[0], odd), *pairs[1:]])
    missing = task.score([(questions[0], None), *pairs[1:]])
    for metric in {"ROUGE_L", "BLEU-1", "strict", "EM", "accuracy_mcq", "accuracy"} & scores.keys():
        assert scores[metric] <= best[metric]
        assert scores[metric] == pytest.approx(missing[metric]), metric
    around = answer(task, questions[:1], [f"{ODD_TEXT}{questions[0].answers[0]}{ODD_TEXT}"])
    assert task.score(zip(questions, [*around, *(prediction for _, prediction in pairs[1:])]))["n"] == len(pairs)


@pytest.mark.parametrize(("name", "split"), METRICS)
def test_chance_has_the_names_of_the_score(name: str, split: str, written: Path) -> None:
    task, questions = get_task(name), load(name, split, written)
    chance = task.chance(questions)
    assert set(chance) <= set(task.score([(question, None) for question in questions]))
    assert all(0 < value < 1 for value in chance.values())
    assert task.chance([]).get("accuracy", 0) < 1


@pytest.mark.parametrize(("name", "split"), [pair for pair in SPLITS if get_task(pair[0]).needs_judge])
def test_every_answer_is_judged(name: str, split: str, written: Path) -> None:
    task, questions = get_task(name), load(name, split, written)
    cases = task.judge_cases(questions)
    assert len(set(cases)) == len(cases)
    assert {case.kind for case in cases} <= set(JUDGE_PROMPTS)
    assert {qid for case in cases for qid in case.qids} == {question.qid for question in questions}
    # Nothing is known of answers that no judge has seen.
    unjudged = [(question, Prediction(question.qid, "x")) for question in questions]
    assert task.score(unjudged) == {"n": len(questions), "missing": 0, "empty": 0}


@pytest.mark.parametrize("name", [name for name in QUESTIONS if isinstance(get_task(name), TrainingOnlyTask)])
def test_what_is_for_training_only_has_no_score(name: str) -> None:
    with pytest.raises(UserError, match="for training only"):
        get_task(name).score([])


def test_a_module_without_a_task_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mylab").mkdir()
    (tmp_path / "mylab/unfinished.py").write_text("from pave.tasks import base\nclass Task(base.Task): ...\n")
    (tmp_path / "mylab/imported.py").write_text("from pave.tasks.base import Task\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("mylab.unfinished", "mylab.imported", "pave.tasks._annotations"):
        with pytest.raises(UserError, match=f"{name}: has no class Task that derives from pave.tasks.base"):
            get_task(name)
    with pytest.raises(UserError, match="no task named 'avqua'; did you mean 'avqa'"):
        get_task("avqua")
    assert get_task("pave.tasks.avqa").name == "avqa"


def test_tasks_import_no_torch() -> None:
    code = "import sys\nfrom pave.utils import registry\nfrom pave.tasks.base import get_task\n"
    code += "for name in registry.names('tasks'): get_task(name)\n"
    code += "assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
