"""Benchmarks with free answers, on made-up files in their true layouts: what is loaded, judged and added up."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.task_data import GENERIC, PACKED_ANSWERS, write, write_open_ended
from helpers.tiny_model import TinySetup

from pave.cli import main
from pave.data import checks
from pave.evaluation import compare_runs
from pave.evaluation.judge_ledger import RequestBuilder
from pave.tasks.base import get_task
from pave.tasks.metrics import judge_prompts, judge_verdicts
from pave.tasks.metrics.judge_prompts import JUDGE_PROMPTS, JudgePrompt
from pave.tasks.metrics.judge_verdicts import JudgeCase, JudgedPrediction, Verdict
from pave.types import Prediction, Question, UserError

pytest_plugins = ["helpers.eval_runs"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """All five data sets, in a folder each."""
    write_open_ended(tmp_path)
    return tmp_path


def test_packed_and_published_layouts(root: Path) -> None:
    msvd = get_task("msvd_qa").load("test", root / "msvd_qa")
    assert msvd[0] == Question("8", "videos/zz1.mp4", "what is a cat doing?", ("sleep",), "what")
    assert msvd[2] == Question("10", "videos/72.avi", "is it night?", ("3",))
    videos = [q.video for q in get_task("msvd_qa").load("val_qa", root / "msvd_qa")]
    assert videos == ["videos/abcDEF12345_3_9.avi", "videos/-xyz_1_2.avi", "videos/named.mkv"]
    (root / "msvd_qa/youtube_mapping.txt").unlink()
    assert get_task("msvd_qa").load("val_qa", root / "msvd_qa")[0].video == "videos/vid1201.avi"
    msrvtt = get_task("msrvtt_qa").load("test_qa", root / "msrvtt_qa")
    assert (msrvtt[1].qid, msrvtt[1].video, msrvtt[1].group) == ("6", "videos/all/video1202.mp4", "who")
    assert [q.video for q in get_task("tgif_qa").load("test", root / "tgif_qa")][1:] == ["mp4/zz1.gif", "mp4/72.mp4"]
    # Answers without ids belong to the questions in their order, as the published code reads them.
    write(root / "msrvtt_qa/test_a.json", [{"answer": a["answer"]} for a in PACKED_ANSWERS])
    assert [q.answers for q in get_task("msrvtt_qa").load("test", root / "msrvtt_qa")] == [("sleep",), ("cat",), ("3",)]
    activitynet = get_task("activitynet_qa").load("test", root / "activitynet_qa")
    assert [q.video for q in activitynet] == ["all_test/v_zz1.webm"] * 2 + ["all_test/v_72.mp4"]
    assert [q.group for q in activitynet] == ["yes/no", "color", "object"]


def test_vcgbench_loads_and_says_what_to_judge(root: Path) -> None:
    questions = get_task("vcgbench").load("test", root / "vcgbench")
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
    cases = get_task("vcgbench").judge_cases(questions)
    assert cases[:3] == [JudgeCase(kind, ("generic/v_zz1",)) for kind in ("correctness", "detail", "context")]
    assert cases[6:] == [
        JudgeCase("temporal", ("temporal/v_zz1",)),
        JudgeCase("consistency", ("consistency/v_zz2/1", "consistency/v_zz2/2")),
        JudgeCase("consistency", ("consistency/v_zz2/1#2", "consistency/v_zz2/2#2")),
    ]
    # A question that --limit cut off from its partner.
    assert get_task("vcgbench").judge_cases(questions[:4]) == cases[:7]


BROKEN = [
    ("msvd_qa", "test_a.json", PACKED_ANSWERS[::-1], "record 1 is about another question, compared with test_q"),
    ("msvd_qa", "test_a.json", PACKED_ANSWERS[:2], "2 answers to 3, compared with test_q.json"),
    ("tgif_qa", "test_a.json", [{"answer": None, "question_id": "8"}], "record 1 has nothing as 'answer'"),
    ("tgif_qa", "test_q.json", [{"question": "what?"}], r"record 1 lacks 'video_name' \(1 of 1 records"),
    ("activitynet_qa", "test_a.json", [PACKED_ANSWERS[0] | {"type": 9}], "record 1 has the type 9, expected 0 to 8"),
    ("vcgbench", "temporal_qa.json", [{"video_name": "v_1", "Q": "What?"}], "record 1 lacks 'A'"),
    ("vcgbench", "consistency_qa.json", GENERIC, "record 1 lacks 'Q1'"),
]


@pytest.mark.parametrize(("name", "file", "data", "message"), BROKEN)
def test_bad_files_are_named(name: str, file: str, data: Any, message: str, root: Path) -> None:
    write(root / name / file, data)
    with pytest.raises(UserError, match=message) as caught:
        get_task(name).load("test", root / name)
    assert str(root / name / file) in str(caught.value)


def test_missing_answers_and_broken_mappings_are_named(root: Path) -> None:
    (root / "msvd_qa/test_a.json").unlink()
    with pytest.raises(UserError, match=r"test_a\.json: no such annotation file"):
        get_task("msvd_qa").load("test", root / "msvd_qa")
    write(root / "msvd_qa/youtube_mapping.txt", "abc\n")
    with pytest.raises(UserError, match=r"youtube_mapping\.txt: found 'abc', expected lines of a name and a number"):
        get_task("msvd_qa").load("val_qa", root / "msvd_qa")


def test_doctor_compares_the_number_of_questions(root: Path) -> None:
    report = checks.check_task("vcgbench", root / "vcgbench", ["test"])
    assert "test: 7 questions about 2 videos" in report.lines
    assert "  7 questions, expected 3493" in report.lines
    assert any("v_zz1.mp4" in line and "1 of 2" in line for line in report.lines)


def test_scores_by_hand(root: Path) -> None:
    questions = get_task("msvd_qa").load("test", root / "msvd_qa")
    predictions = [
        JudgedPrediction("8", "it sleeps", {"qa": Verdict(5, True)}),
        JudgedPrediction("9", "a dog", {"qa": Verdict(2, False)}),
        JudgedPrediction("10", "hm", {}),
    ]
    scores = get_task("msvd_qa").score(list(zip(questions, predictions)))
    assert scores == {
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
    fewer = get_task("msvd_qa").score([(questions[0], None), *zip(questions[1:], predictions[1:])])
    assert (fewer["accuracy"], fewer["score"], fewer["missing"]) == (0, pytest.approx(2 / 3), 1)


def test_vcgbench_by_hand(root: Path) -> None:
    questions = get_task("vcgbench").load("test", root / "vcgbench")
    verdicts = [
        {"correctness": Verdict(4), "detail": Verdict(3), "context": Verdict(5)},
        {"correctness": Verdict(1), "detail": Verdict(2)},  # one reply could not be read
        {"temporal": Verdict(3)},
        {"consistency": Verdict(2)},
        {},
        {"consistency": Verdict(5)},
        {},
    ]
    predictions = [JudgedPrediction(q.qid, "x", verdict) for q, verdict in zip(questions, verdicts)]
    scores = get_task("vcgbench").score(zip(questions, predictions))
    assert scores == {
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
    temporal = get_task("vcgbench").score([(questions[2], predictions[2])])
    assert (temporal["temporal"], temporal["mean"]) == (3, 3)
    assert "detail" not in temporal


def test_judged_runs_are_compared(root: Path) -> None:
    """Every mean over questions gets an interval, also that of pairs of questions."""
    for name, metrics in (
        ("activitynet_qa", {"accuracy", "score", "accuracy yes/no"}),
        ("vcgbench", {"correctness", "detail", "context", "temporal", "consistency"}),
    ):
        questions = get_task(name).load("test", root / name)
        kinds: dict[str, list[str]] = {}
        for case in get_task(name).judge_cases(questions):
            kinds.setdefault(case.qids[0], []).append(case.kind)
        first, second = (
            {
                q.qid: JudgedPrediction(q.qid, "x", {k: Verdict((i + s) % 6, i % 2 == s) for k in kinds.get(q.qid, [])})
                for i, q in enumerate(questions)
            }
            for s in (0, 1)
        )
        compared = compare_runs.compare(get_task(name), questions, first, second)
        assert {row.what for row in compared.rows} >= metrics
        assert compared.rows[0].difference != 0
        assert compared.flips


def test_eval_says_that_answers_are_not_judged(
    ckpt: Path, tiny_setup: TinySetup, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = sorted((tiny_setup.data / "videos").glob("*.mp4"))[:2]
    records = [{"video_name": clip.stem, "question": "what is it?", "question_id": clip.stem} for clip in clips]
    write(tmp_path / "data/test_q.json", records)
    write(tmp_path / "data/test_a.json", [{"answer": "a cat", "question_id": clip.stem} for clip in clips])
    shutil.copytree(tiny_setup.data / "videos", tmp_path / "data/videos")
    arguments = ["--ckpt", str(ckpt), "--base-only", "--device", "cpu", "--workers", "0", "--max-new-tokens", "3"]
    out = tmp_path / "out"
    assert main.main(["eval", *arguments, "--out", str(out), "data.task=msvd_qa", f"data.root={tmp_path}/data"]) == 0
    assert "NOT JUDGED" in capsys.readouterr().out
    assert len((out / "predictions.jsonl").read_text().splitlines()) == 2
    assert set(json.loads((out / "metrics.json").read_text())["metrics"]) == {"n", "missing", "empty"}


READABLE_REPLIES = {
    "{'pred': 'yes', 'score': 4}": Verdict(4, True),
    '{"pred": "no", "score": 0}': Verdict(0, False),
    "  {'score': 5, 'pred': 'Yes.'}\n": Verdict(5, True),
    "{'pred': 'yes', 'score': 4.8}": Verdict(4, True),
    "{'pred': 'no', 'score': '3'}": Verdict(3, False),
    "```python\n{'pred': 'yes', 'score': 4}\n```": Verdict(4, True),
    '```\n{"pred": "yes", "score": 4, "why": null}```': Verdict(4, True),
    "{'pred': 'unknown', 'score': 1}": Verdict(1, False),
    "{'pred': 'not yes', 'score': 1}": Verdict(1, True),
}
UNREADABLE_REPLIES = (
    "", "yes", "The answer is {'pred': 'yes', 'score': 4}", "{'pred': 'yes', 'score': 4} because", "{''score': 4.8}",
    "{'pred': 'yes'}", "{'pred': True, 'score': 4}", "{'pred': 'maybe', 'score': 4}", "{'pred': 'yes', 'score': 6}",
    "{'pred': 'yes', 'score': -1}", "{'pred': 'yes', 'score': True}", "{'pred': 'yes', 'score': 'four'}",
    "{'pred': 'yes', 'score': float('nan')}", '{"pred": "yes", "score": NaN}', '{"pred": "yes", "score": 1e999}',
    f"{{'pred': 'yes', 'score': 1{'0' * 400}}}", "['yes', 4]", "{['pred']: 'yes'}", "[" * 1500,
    f"{{'pred': 'yes', 'score': 4, 'why': '{'x' * 3000}'}}", "\x00{'pred': 'yes', 'score': 4}",
    "{'pred': 'yes', 'score': 4, 'x': __import__('os').system('false')}",
)  # fmt: skip


def test_replies_are_read_as_a_dictionary_and_nothing_else() -> None:
    for reply, verdict in READABLE_REPLIES.items():
        assert judge_verdicts.parse(reply, "qa") == verdict, reply
    for reply in UNREADABLE_REPLIES:
        assert judge_verdicts.parse(reply, "qa") is None, reply


def test_a_score_alone_is_enough_for_vcgbench() -> None:
    assert judge_verdicts.parse("{'score': 3}", "detail") == Verdict(3)
    assert judge_verdicts.parse("{'pred': 'yes', 'score': 3.9}", "temporal") == Verdict(3)
    assert judge_verdicts.parse("{'Score': 3}", "detail") is None


def test_messages_to_a_judge() -> None:
    """The published structure: instructions, then question, correct answer and prediction in this order, the form."""
    question = Question("1", "v.mp4", "what {pred} is it?", ("a {question}",))
    turns = judge_verdicts.messages(JUDGE_PROMPTS["qa"], [question], ["it is {answer}"])
    system, user = (turn["content"] for turn in turns)
    assert "##INSTRUCTIONS:" in system
    lines = "Question: what {pred} is it?\nCorrect Answer: a {question}\nPredicted Answer: it is {answer}\n\n"
    assert lines in user
    assert user.index("'pred'") < user.index("'yes' or 'no'") < user.index("0 to 5")
    both = [Question(str(i), "v.mp4", f"what {i}?", ("a cat",)) for i in (1, 2)]
    user = judge_verdicts.messages(JUDGE_PROMPTS["consistency"], both, ["one", "two"])[1]["content"]
    assert "Question 1: what 1?\nQuestion 2: what 2?\nCorrect Answer: a cat\n" in user
    assert "Predicted Answer to Question 1: one\nPredicted Answer to Question 2: two\n\n" in user
    for kind, prompt in JUDGE_PROMPTS.items():
        example = ast.literal_eval(prompt.user[prompt.user.rindex("{") :])
        assert judge_verdicts.parse(str(example), kind) is not None
        assert judge_prompts.prompt_source({kind: prompt}) == "our own"


def test_another_answer_is_another_prompt() -> None:
    questions = [Question(qid, "v.mp4", "what?", ("cat",)) for qid in "ab"]
    builders = [
        RequestBuilder(JUDGE_PROMPTS, questions, {q: Prediction(q, text) for q in "ab"}) for text in ("dog", "cow")
    ]
    cases = [JudgeCase(kind, (qid,)) for qid in "ab" for kind in ("qa", "detail")]
    assert len({builder.build(case).version for builder in builders for case in cases}) == 8
    assert builders[0].build(JudgeCase("qa", ("c",))) is None


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


def test_prompts_come_from_published_scripts_which_are_not_run(tmp_path: Path) -> None:
    write(tmp_path / "evaluate_activitynet_qa.py", f"{SCRIPT}\nraise SystemExit('was run')")
    prompts = judge_prompts.read_scripts(tmp_path, ["qa"])
    assert prompts["qa"] == JudgePrompt(
        "You compare. ------- Be fair.\n",
        "Compare:\n\nQuestion: {question}\nCorrect Answer: {answer}\nPredicted Answer: {pred}\n\n"
        "For example {'pred': 'yes', 'score': 4.8}.",
    )
    assert judge_prompts.prompt_source(prompts) == "given"
    assert judge_prompts.PUBLISHED_VERSIONS.keys() == judge_prompts.SCRIPTS.keys() == JUDGE_PROMPTS.keys()
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
