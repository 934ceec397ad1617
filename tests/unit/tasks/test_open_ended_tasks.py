"""Benchmarks with free answers, on made-up files in their true layouts: what is loaded, judged and added up."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from helpers.tiny_model import TinySetup

from pave.cli import main
from pave.data import checks
from pave.evaluation import compare_runs
from pave.evaluation.judge_ledger import Asked
from pave.tasks.metrics import judge_prompts, judge_verdicts
from pave.tasks.metrics.judge_prompts import WORDS, Words
from pave.tasks.metrics.judge_verdicts import Case, Judged, Verdict
from pave.types import Prediction, Question, UserError
from pave.utils import registry

PACKED_Q = [
    {"video_name": "zz1", "question": "what is a cat doing?", "question_id": "8"},
    {"video_name": "zz1", "question": "who sleeps?", "question_id": "9"},
    {"video_name": 72, "question": "is it night?", "question_id": 10},
]
PACKED_A = [
    {"answer": "sleep", "question_id": "8"},
    {"answer": "cat", "question_id": "9"},
    {"answer": 3, "question_id": 10},
]
PUBLISHED_LAYOUT = [
    {"answer": "sleep", "category_id": 3, "id": 5, "question": "what is a cat doing?", "video_id": 1201},
    {"answer": "cat", "id": 6, "question": "who sleeps?", "video_id": 1202},
    {"answer": "cat", "question_id": "7", "question": "who sleeps?", "video_name": "named.mkv"},
]
GENERIC = [
    {"video_name": "v_zz1", "Q": "What does the cat do?", "A": "It sleeps on a chair, then it leaves."},
    {"video_name": "v_zz1", "Q": "What else?", "A": "A dog barks."},
]
TEMPORAL = [{"video_name": "v_zz1", "Q": "What comes first?", "A": "The cat sleeps."}]
CONSISTENCY = [
    {"video_name": "v_zz2", "Q1": "Where does the cat sleep?", "Q2": "On what does it lie?", "A": "On a chair."},
    {"video_name": "v_zz2", "Q1": "Who barks?", "Q2": "Which animal is loud?", "A": "A dog."},
]


def write(file: Path, data: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(data if isinstance(data, str) else json.dumps(data))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """All five data sets, in a folder each."""
    for name in ("msvd_qa", "msrvtt_qa", "tgif_qa"):
        write(tmp_path / name / "test_q.json", PACKED_Q)
        write(tmp_path / name / "test_a.json", PACKED_A)
        for split in ("test", "val", "train"):
            write(tmp_path / name / f"{split}_qa.json", PUBLISHED_LAYOUT)
    write(tmp_path / "msvd_qa/youtube_mapping.txt", "abcDEF12345_3_9 vid1201\n-xyz_1_2 vid1202\n")
    write(tmp_path / "msvd_qa/videos/zz1.mkv", "")
    write(tmp_path / "msvd_qa/videos/zz1.mp4", "")
    write(tmp_path / "msvd_qa/videos/zz1.json", "")
    write(tmp_path / "tgif_qa/mp4/zz1.gif", "")
    for split in ("train", "val", "test"):
        write(tmp_path / f"activitynet_qa/{split}_q.json", PACKED_Q)
        write(tmp_path / f"activitynet_qa/{split}_a.json", [{**a, "type": i + 3} for i, a in enumerate(PACKED_A)])
    write(tmp_path / "activitynet_qa/all_test/v_zz1.webm", "")
    for part, data in (("generic", GENERIC), ("temporal", TEMPORAL), ("consistency", CONSISTENCY)):
        write(tmp_path / f"vcgbench/{part}_qa.json", data)
    write(tmp_path / "vcgbench/Test_Videos/v_zz2.mkv", "")
    return tmp_path


pytest_plugins = ["helpers.eval_runs"]


def task(name: str) -> ModuleType:
    return registry.load("tasks", name)


SPLITS = [(name, split) for name in ("msvd_qa", "msrvtt_qa", "tgif_qa", "activitynet_qa", "vcgbench")
          for split in task(name).SPLITS]  # fmt: skip


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_every_split_loads(name: str, split: str, root: Path) -> None:
    questions = task(name).load(split, root / name)
    assert questions == task(name).load(split, root / name)
    assert len({q.qid for q in questions}) == len(questions) > 0
    for question in questions:
        assert task(name).prompt(question) == question.text
        assert task(name).target(question) == question.answers[0]
        assert not Path(question.video).is_absolute()
    assert set(task(name).about(split)) >= {"prompt", "references", "judged"}
    cases = task(name).cases(questions)
    assert len(set(cases)) == len(cases)
    assert {case.kind for case in cases} <= set(WORDS)
    # Every answer is judged for something.
    assert {qid for case in cases for qid in case.qids} == {q.qid for q in questions}


def test_packed_and_published_layouts(root: Path) -> None:
    msvd = task("msvd_qa").load("test", root / "msvd_qa")
    assert msvd[0] == Question("8", "videos/zz1.mp4", "what is a cat doing?", ("sleep",), "what")
    assert msvd[2] == Question("10", "videos/72.avi", "is it night?", ("3",))
    videos = [q.video for q in task("msvd_qa").load("val_qa", root / "msvd_qa")]
    assert videos == ["videos/abcDEF12345_3_9.avi", "videos/-xyz_1_2.avi", "videos/named.mkv"]
    (root / "msvd_qa/youtube_mapping.txt").unlink()
    assert task("msvd_qa").load("val_qa", root / "msvd_qa")[0].video == "videos/vid1201.avi"
    msrvtt = task("msrvtt_qa").load("test_qa", root / "msrvtt_qa")
    assert (msrvtt[1].qid, msrvtt[1].video, msrvtt[1].group) == ("6", "videos/all/video1202.mp4", "who")
    assert [q.video for q in task("tgif_qa").load("test", root / "tgif_qa")][1:] == ["mp4/zz1.gif", "mp4/72.mp4"]
    # Answers without ids belong to the questions in their order, as the published code reads them.
    write(root / "msrvtt_qa/test_a.json", [{"answer": a["answer"]} for a in PACKED_A])
    assert [q.answers for q in task("msrvtt_qa").load("test", root / "msrvtt_qa")] == [("sleep",), ("cat",), ("3",)]
    activitynet = task("activitynet_qa").load("test", root / "activitynet_qa")
    assert [q.video for q in activitynet] == ["all_test/v_zz1.webm"] * 2 + ["all_test/v_72.mp4"]
    assert [q.group for q in activitynet] == ["yes/no", "color", "object"]


def test_vcgbench_loads_and_says_what_to_judge(root: Path) -> None:
    questions = task("vcgbench").load("test", root / "vcgbench")
    assert [q.qid for q in questions] == [
        "generic/v_zz1",
        "generic/v_zz1#2",
        "temporal/v_zz1",
        "consistency/v_zz2/1",
        "consistency/v_zz2/2",
        "consistency/v_zz2/1#2",
        "consistency/v_zz2/2#2",
    ]
    assert questions[3].video == "Test_Videos/v_zz2.mkv"
    assert (questions[4].text, questions[4].answers) == ("On what does it lie?", ("On a chair.",))
    cases = task("vcgbench").cases(questions)
    assert cases[:3] == [Case(kind, ("generic/v_zz1",)) for kind in ("correctness", "detail", "context")]
    assert cases[6:] == [
        Case("temporal", ("temporal/v_zz1",)),
        Case("consistency", ("consistency/v_zz2/1", "consistency/v_zz2/2")),
        Case("consistency", ("consistency/v_zz2/1#2", "consistency/v_zz2/2#2")),
    ]
    # A question that --limit cut off from its partner.
    assert task("vcgbench").cases(questions[:4]) == cases[:7]


BROKEN = [
    ("msvd_qa", "test_a.json", PACKED_A[::-1], "record 1 is about another question, compared with test_q"),
    ("msvd_qa", "test_a.json", PACKED_A[:2], "2 answers to 3, compared with test_q.json"),
    ("tgif_qa", "test_a.json", [{"answer": None, "question_id": "8"}], "record 1 has nothing as 'answer'"),
    ("tgif_qa", "test_q.json", [{"question": "what?"}], r"record 1 lacks 'video_name' \(1 of 1 records"),
    ("activitynet_qa", "test_a.json", [{**a, "type": 9} for a in PACKED_A], "record 1 has the type 9, expected 0 to 8"),
    ("vcgbench", "temporal_qa.json", [{"video_name": "v_1", "Q": "What?"}], "record 1 lacks 'A'"),
    ("vcgbench", "consistency_qa.json", GENERIC, "record 1 lacks 'Q1'"),
]


@pytest.mark.parametrize(("name", "file", "data", "message"), BROKEN)
def test_bad_files_are_named(name: str, file: str, data: Any, message: str, root: Path) -> None:
    write(root / name / file, data)
    with pytest.raises(UserError, match=message) as caught:
        task(name).load("test", root / name)
    assert str(root / name / file) in str(caught.value)


def test_missing_files_and_splits_are_named(root: Path) -> None:
    (root / "msvd_qa/test_a.json").unlink()
    with pytest.raises(UserError, match=r"test_a\.json: no such annotation file"):
        task("msvd_qa").load("test", root / "msvd_qa")
    with pytest.raises(UserError, match="vcgbench has no split 'temporel'; did you mean 'temporal'"):
        task("vcgbench").load("temporel", root / "vcgbench")
    write(root / "msvd_qa/youtube_mapping.txt", "abc\n")
    with pytest.raises(UserError, match=r"youtube_mapping\.txt: found 'abc', expected lines of a name and a number"):
        task("msvd_qa").load("val_qa", root / "msvd_qa")


def test_doctor_and_list_know_them(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = checks.check_task("vcgbench", root / "vcgbench", ["test"])
    assert "test: 7 questions about 2 videos" in report.lines
    assert "  7 questions, expected 3493" in report.lines
    assert any("v_zz1.mp4" in line and "1 of 2" in line for line in report.lines)
    assert main.main(["list", "tasks"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in ("msvd_qa", "msrvtt_qa", "tgif_qa", "activitynet_qa", "vcgbench"))
    assert "open_qa" not in listed


def test_scores_by_hand(root: Path) -> None:
    questions = task("msvd_qa").load("test", root / "msvd_qa")
    said = [
        Judged("8", "it sleeps", {"qa": Verdict(5, True)}),
        Judged("9", "a dog", {"qa": Verdict(2, False)}),
        Judged("10", "hm", {}),
    ]
    found = task("msvd_qa").score(list(zip(questions, said)))
    assert found == {
        "accuracy": pytest.approx(1 / 3),
        "accuracy what": 1,
        "accuracy who": 0,
        "score": pytest.approx(7 / 3),
        "accuracy_judged": 0.5,
        "score_judged": 3.5,
        "n": 3,
        "missing": 0,
        "empty": 0,
    }
    fewer = task("msvd_qa").score([(questions[0], None), *zip(questions[1:], said[1:])])
    assert (fewer["accuracy"], fewer["score"], fewer["missing"]) == (0, pytest.approx(2 / 3), 1)
    # Nothing is known of answers that no judge has seen.
    plain = [(q, Prediction(q.qid, "x")) for q in questions]
    assert task("msvd_qa").score(plain) == {"n": 3, "missing": 0, "empty": 0}


def test_vcgbench_by_hand(root: Path) -> None:
    questions = task("vcgbench").load("test", root / "vcgbench")
    verdicts = [
        {"correctness": Verdict(4), "detail": Verdict(3), "context": Verdict(5)},
        {"correctness": Verdict(1), "detail": Verdict(2)},  # one reply could not be read
        {"temporal": Verdict(3)},
        {"consistency": Verdict(2)},
        {},
        {"consistency": Verdict(5)},
        {},
    ]
    said = [Judged(q.qid, "x", verdict) for q, verdict in zip(questions, verdicts)]
    found = task("vcgbench").score(zip(questions, said))
    assert found == {
        "correctness": 2.5,
        "detail": 2.5,
        "context": 2.5,
        "temporal": 3,
        "consistency": 3.5,
        "mean": pytest.approx(2.8),
        "correctness_judged": 2.5,
        "detail_judged": 2.5,
        "context_judged": 5,
        "temporal_judged": 3,
        "consistency_judged": 3.5,
        "mean_judged": pytest.approx(3.3),
        "n": 7,
        "missing": 0,
        "empty": 0,
    }
    temporal = task("vcgbench").score([(questions[2], said[2])])
    assert (temporal["temporal"], temporal["mean"]) == (3, 3)
    assert "detail" not in temporal


def test_judged_runs_are_compared(root: Path) -> None:
    """Every mean over questions gets an interval, also that of pairs of questions."""
    for name, metrics in (
        ("activitynet_qa", {"accuracy", "score", "accuracy yes/no"}),
        ("vcgbench", {"correctness", "detail", "context", "temporal", "consistency"}),
    ):
        questions = task(name).load("test", root / name)
        kinds: dict[str, list[str]] = {}
        for case in task(name).cases(questions):
            kinds.setdefault(case.qids[0], []).append(case.kind)
        one, other = (
            {
                q.qid: Judged(q.qid, "x", {k: Verdict((i + s) % 6, i % 2 == s) for k in kinds.get(q.qid, [])})
                for i, q in enumerate(questions)
            }
            for s in (0, 1)
        )
        compared = compare_runs.compare(task(name), questions, one, other)
        assert {row.what for row in compared.rows} >= metrics
        assert compared.rows[0].difference != 0
        assert compared.flips


def test_a_model_answers_and_is_told_what_is_left_to_do(
    ckpt: Path, tiny_setup: TinySetup, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = sorted((tiny_setup.data / "videos").glob("*.mp4"))[:2]
    asked = [{"video_name": clip.stem, "question": "what is it?", "question_id": clip.stem} for clip in clips]
    write(tmp_path / "data/test_q.json", asked)
    write(tmp_path / "data/test_a.json", [{"answer": "a cat", "question_id": clip.stem} for clip in clips])
    shutil.copytree(tiny_setup.data / "videos", tmp_path / "data/videos")
    given = ["--ckpt", str(ckpt), "--base-only", "--device", "cpu", "--workers", "0", "--max-new-tokens", "3"]
    out = tmp_path / "out"
    assert main.main(["eval", *given, "--out", str(out), "data.task=msvd_qa", f"data.root={tmp_path}/data"]) == 0
    assert "NOT JUDGED" in capsys.readouterr().out
    assert len((out / "predictions.jsonl").read_text().splitlines()) == 2
    assert set(json.loads((out / "metrics.json").read_text())["metrics"]) == {"n", "missing", "empty"}


REPLIES = [
    ("{'pred': 'yes', 'score': 4}", Verdict(4, True)),
    ('{"pred": "no", "score": 0}', Verdict(0, False)),
    ("  {'score': 5, 'pred': 'Yes.'}\n", Verdict(5, True)),
    ("{'pred': 'yes', 'score': 4.8}", Verdict(4, True)),
    ("{'pred': 'no', 'score': '3'}", Verdict(3, False)),
    ("```python\n{'pred': 'yes', 'score': 4}\n```", Verdict(4, True)),
    ('```\n{"pred": "yes", "score": 4, "why": null}```', Verdict(4, True)),
    ("{'pred': 'unknown', 'score': 1}", Verdict(1, False)),
    ("{'pred': 'not yes', 'score': 1}", Verdict(1, True)),
    ("", None),
    ("yes", None),
    ("The answer is {'pred': 'yes', 'score': 4}", None),
    ("{'pred': 'yes', 'score': 4} because", None),
    ("{''score': 4.8}", None),
    ("{'pred': 'yes'}", None),
    ("{'pred': True, 'score': 4}", None),
    ("{'pred': 'maybe', 'score': 4}", None),
    ("{'pred': 'yes', 'score': 6}", None),
    ("{'pred': 'yes', 'score': -1}", None),
    ("{'pred': 'yes', 'score': True}", None),
    ("{'pred': 'yes', 'score': 'four'}", None),
    ("{'pred': 'yes', 'score': float('nan')}", None),
    ('{"pred": "yes", "score": NaN}', None),
    ('{"pred": "yes", "score": 1e999}', None),
    (f"{{'pred': 'yes', 'score': 1{'0' * 400}}}", None),
    ("['yes', 4]", None),
    ("{['pred']: 'yes'}", None),
    ("[" * 1500, None),
    (f"{{'pred': 'yes', 'score': 4, 'why': '{'x' * 3000}'}}", None),
    ("{'pred': 'yes', 'score': 4, 'x': __import__('os').system('false')}", None),
    ("\x00{'pred': 'yes', 'score': 4}", None),
]


@pytest.mark.parametrize(("reply", "wanted"), REPLIES)
def test_replies_are_read_as_a_dictionary_and_nothing_else(reply: str, wanted: Verdict | None) -> None:
    assert judge_verdicts.parse(reply, "qa") == wanted


def test_a_score_alone_is_enough_for_vcgbench() -> None:
    assert judge_verdicts.parse("{'score': 3}", "detail") == Verdict(3)
    assert judge_verdicts.parse("{'pred': 'yes', 'score': 3.9}", "temporal") == Verdict(3)
    assert judge_verdicts.parse("{'Score': 3}", "detail") is None


def test_what_a_judge_is_told() -> None:
    """The published structure: instructions, then question, correct answer and prediction in this order, the form."""
    question = Question("1", "v.mp4", "what {pred} is it?", ("a {question}",))
    system, user = (turn["content"] for turn in judge_verdicts.messages(WORDS["qa"], [question], ["it is {answer}"]))
    assert "##INSTRUCTIONS:" in system
    lines = "Question: what {pred} is it?\nCorrect Answer: a {question}\nPredicted Answer: it is {answer}\n\n"
    assert lines in user
    assert user.index("'pred'") < user.index("'yes' or 'no'") < user.index("0 to 5")
    both = [Question(str(i), "v.mp4", f"what {i}?", ("a cat",)) for i in (1, 2)]
    user = judge_verdicts.messages(WORDS["consistency"], both, ["one", "two"])[1]["content"]
    assert "Question 1: what 1?\nQuestion 2: what 2?\nCorrect Answer: a cat\n" in user
    assert "Predicted Answer to Question 1: one\nPredicted Answer to Question 2: two\n\n" in user
    for kind, words in WORDS.items():
        example = ast.literal_eval(words.user[words.user.rindex("{") :])
        assert judge_verdicts.parse(str(example), kind) is not None
        assert judge_prompts.whose({kind: words}) == "our own"


def test_another_answer_is_another_prompt() -> None:
    questions = [Question(qid, "v.mp4", "what?", ("cat",)) for qid in "ab"]
    asked = [Asked(WORDS, questions, {q: Prediction(q, text) for q in "ab"}) for text in ("dog", "cow")]
    versions = [
        about.prompt(Case(kind, (qid,))).version for about in asked for qid in "ab" for kind in ("qa", "detail")
    ]  # type: ignore[union-attr]
    assert len(set(versions)) == 8
    assert asked[0].prompt(Case("qa", ("c",))) is None


SCRIPT = """
import openai
def annotate(question, answer, pred):
    qa_set = {"q": question, "a": answer, **{}}
    return openai.ChatCompletion.create(model="m", messages=[
        {"role": "system", "content":
            "You compare. "
            "------"
            "- Be fair.\\n"},
        {"role": "user", "content":
            "Compare:\\n\\n"
            f"Question: {question}\\n"
            f"Correct Answer: {answer}\\n"
            f"Predicted Answer: {pred}\\n\\n"
            "For example {'pred': 'yes', 'score': 4.8}."},
    ])
"""


def test_words_come_from_published_scripts_which_are_not_run(tmp_path: Path) -> None:
    write(tmp_path / "evaluate_activitynet_qa.py", f"{SCRIPT}\nraise SystemExit('was run')")
    words = judge_prompts.read_scripts(tmp_path, ["qa"])
    assert words["qa"] == Words(
        "You compare. ------- Be fair.\n",
        "Compare:\n\nQuestion: {question}\nCorrect Answer: {answer}\nPredicted Answer: {pred}\n\n"
        "For example {'pred': 'yes', 'score': 4.8}.",
    )
    assert judge_prompts.whose(words) == "given"
    assert judge_prompts.PUBLISHED.keys() == judge_prompts.SCRIPTS.keys() == WORDS.keys()
    for text, message in (
        (SCRIPT.replace("{pred}", "nothing"), "about answer, pred, question"),
        ("def", "not a script"),
        (SCRIPT.replace('"role"', '"who"'), "expected one message of the system and one of the user"),
    ):
        write(tmp_path / "evaluate_activitynet_qa.py", text)
        with pytest.raises(UserError, match=message):
            judge_prompts.read_scripts(tmp_path, ["qa"])
    with pytest.raises(UserError, match=r"0 files are named eval\*_1_correctness.py, expected one"):
        judge_prompts.read_scripts(tmp_path, ["correctness"])
