"""Tasks on tiny annotations in the true layout of their data sets: questions, prompts, targets; bad records."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from helpers.paths import FIXTURES, GOLDEN, read_json
from helpers.task_data import load_fixture

from pave.tasks.base import get_task
from pave.tasks.music_avqa import fill_template
from pave.types import Question, UserError


def test_avsd() -> None:
    (train,) = load_fixture("avsd", "train")
    assert (train.qid, train.video) == ("ZZ001_0", "Charades_v1_480/ZZ001.mp4")
    assert train.history[0] == ("is she alone ?", "yes she is .")
    assert len(train.history) == 4
    assert (train.text, train.answers) == ("does she drink ?", ("once , near the end .",))
    first, second, third = load_fixture("avsd", "test")
    assert first == Question(
        "ZZ003",
        "Charades_vu17_test_480/ZZ003.mp4",
        "does it meow ?",
        ("it meows twice , then it sleeps .",),
        history=(("is a dog there ?", "no dog , a cat ."),),
    )
    assert second.history == ()
    assert len(third.history) == 3
    many = load_fixture("avsd", "test_multiref")
    assert [len(q.answers) for q in many] == [6, 6, 6]
    assert [q.answers[0] for q in many] == [q.answers[0] for q in (first, second, third)]


def test_avqa() -> None:
    question = load_fixture("avqa", "train")[0]
    assert (question.qid, question.video) == ("1", "video/Zz0_ab-9QxY_000030.mp4")
    assert question.group == "Which"
    assert get_task("avqa").prompt(question) == (
        "Select the best answer to the following multiple-choice question based on the video and the subtitles. Respond"
        " with only the letter (A, B, C, or D) of the correct option.\nWhat is making the sound?\nA.kettle\nB.drum\n"
        "C.train\nD.dog\nAnswer with the option's letter from the given choices directly."
    )
    assert get_task("avqa").target(question) == "C"


def test_music_avqa() -> None:
    train = load_fixture("music_avqa", "train")
    # What is heard is learnt twice, what is only seen once.
    assert [q.qid for q in train] == ["0", "0#2", "1", "2", "2#2"]
    assert train[2] == Question(
        "1", "MUCIS-AVQA-videos-Synthetic/sa00009902.mp4", "Where is the first violin?", ("left",), "Visual Location"
    )
    test = load_fixture("music_avqa", "test")
    assert [q.qid for q in test] == ["0", "1", "2", "2#2", "3"]
    assert test[3].video == "MUSIC-AVQA-videos-Real/00009904.mp4"
    assert get_task("music_avqa").prompt(test[3]) == "Which instrument makes the sound first? "


def test_scanqa_and_sqa3d() -> None:
    question = load_fixture("scanqa", "val")[0]
    assert question == Question(
        "val-scene9999-0", "scannet/scene9999_00", "What color is the chair?", ("brown", "dark brown"), "Color"
    )
    assert [q.group for q in load_fixture("scanqa", "val")] == ["Color", "Number", "Place"]
    questions = load_fixture("sqa3d", "test")
    assert questions[0].qid == "220602999991"
    assert questions[0].video == "scannet/scene9999_00"
    assert get_task("sqa3d").prompt(questions[0]) == "I am sitting on the bed. Which side is the door on?"
    # `What's` and ` is` are other types to the official code, which takes the first word as it stands.
    assert [q.group for q in questions] == ["Which | type4", "What | type5", "Is | type5", "Other | type5"]
    assert load_fixture("sqa3d", "test_task") == questions


def test_egoexo() -> None:
    question = load_fixture("egoexo", "val")[1]
    assert question.qid == "0000-ac"
    assert question.video == "takes/u_mu_03/frame_aligned_videos/downscaled/448/aria01_214-1.mp4"
    assert (question.group, get_task("egoexo").target(question)) == ("Music", "Late Expert")
    prompt = get_task("egoexo").prompt(question)
    assert prompt.startswith("In this video, a human is performing an activity. Your goal is to evaluate the human's")
    assert "levels: 1. Novice: Beginner-level performance with noticeable gaps in basic skills, under" in prompt
    assert prompt.endswith("showcasing exceptional skill, precision, and expertise. Example Output: Early Expert")
    named = get_task("egoexo").prompt(load_fixture("egoexo", "val_action")[1])
    words = "performing an activity: Music, and the task name is: Dribble drill. Your goal"
    assert named == prompt.replace("performing an activity. Your goal", words)
    short = get_task("egoexo").prompt(load_fixture("egoexo", "val_short")[1])
    levels = "levels: 1. Novice 2. Early Expert. 3. Intermediate Expert 4. Late Expert. Example Output: Early Expert"
    assert short == prompt[: prompt.index("levels: ")] + levels
    assert question.features == "takes/u_mu_03/frame_aligned_videos/downscaled/448"


def test_llava_video() -> None:
    questions = load_fixture("llava_video", "train")
    assert [q.qid for q in questions] == ["v_1a", "v_b", "v_1a#2", "v_1y", "v_2a", "v_2y"]
    assert questions[0].video == "1_2_m_academic_v0_1/academic_source/activitynet/v_1a.mp4"
    assert (questions[0].text, questions[0].answers) == ("What is shown?", ("A street.",))
    assert questions[2].history == (("How does it end?", "The bus leaves."),)
    assert (questions[2].text, questions[2].answers) == ("And before?", ("It waits.",))


def test_videomme() -> None:
    first, _, third, _ = load_fixture("videomme", "test")
    assert first == Question(
        "900-1",
        "data/abcDEF12345.mp4",
        "Select the best answer to the following multiple-choice question based on the video and the subtitles. Respond"
        " with only the letter (A, B, C, or D) of the correct option.\nHow many lamps are lit?\nA. 1.\nB. 2.\nC. 3.\n"
        "D. 4.\n\nAnswer with the option's letter from the given choices directly.",
        ("B",),
        "short | Knowledge | Law | Counting Problem",
    )
    with_subtitles = load_fixture("videomme", "test_subtitles")
    head = "Select the best answer to the following multiple-choice question based on the video and the subtitles. "
    assert with_subtitles[0].text == (
        "This video's subtitles are listed below: \nGood morning.\nSit down, please.\n"
        f"{head}Respond with only the letter (A, B, C, or D) of the correct option.\nHow many lamps are lit?\n"
        "A. 1.\nB. 2.\nC. 3.\nD. 4.\nThe best answer is:"
    )
    assert with_subtitles[2].text.startswith(
        "This video's subtitles are listed below: \nNo subtitles available\nSelect"
    )
    assert with_subtitles[3].text.startswith("This video's subtitles are listed below: \n\nSelect")
    assert with_subtitles[2].video == third.video == "data/-zzZZ_98765.mp4"


def test_videomme_says_which_subtitles_are_missing() -> None:
    root = FIXTURES / "videomme"
    assert get_task("videomme").check("test", root) == []
    assert get_task("videomme").check("test_subtitles", root) == [
        f"1 of 744 subtitle files in {root / 'subtitle'}",
        "subtitle/qqQQ1234567.srt is missing, of a long video",
    ]


def test_mvbench() -> None:
    questions = load_fixture("mvbench", "test")
    assert questions[0] == Question(
        "action_sequence/0",
        "star/Charades_segment/ZZ0A_0.mp4",
        "Question:What happened after the person took the cup?\nOption:\n(A) Opened the door.\n(B) Sat down.\n"
        "(C) Closed the box.\nOnly give the best option.\n",
        ("B", "Sat down."),
        "action_sequence",
        features="star/Charades_segment/ZZ0A_0",
    )
    assert questions[1].answers == ("B", "2")  # the first of two equal candidates
    assert len({q.group for q in questions}) == 20
    assert get_task("mvbench").chance(questions[:2])["accuracy"] == pytest.approx((1 / 3 + 1 / 4) / 2)


def test_mlvu() -> None:
    questions = load_fixture("mlvu", "dev")
    assert [q.qid for q in questions[:5]] == [
        "plotQA/plotQA_900",
        "needle/needle_900",
        "needle/needle_901",
        "ego/ego_900",
        "ego/ego_900#2",
    ]
    assert get_task("mlvu").prompt(questions[3]) == (
        "\nWhat did I pick up first?\n(A) a pan\n(B) a cup\n(C) a lid\n(D) a towel\nOnly give the best option.\n\n"
        "Best option: ("
    )
    assert questions[3].video == "video/3_ego/ego_900.mp4"
    assert questions[2].answers == ("@", "black")  # nothing can answer it
    assert questions[5].answers == ("C", "two")  # the last of two equal candidates
    assert [q.answers[0] for q in load_fixture("mlvu", "test")] == ["F", "B", "E"]
    assert [q.group for q in load_fixture("mlvu", "test")] == ["ego", "needle", "sportsQA"]
    packed = load_fixture("mlvu", "dev_packed")[0]
    assert (packed.qid, packed.video, packed.answers) == ("ER_900", "ego_900.mp4", ("B", "a cup"))
    assert get_task("mlvu").chance(load_fixture("mlvu", "test"))["accuracy"] == pytest.approx(1 / 6)
    assert get_task("mlvu").chance([packed])["accuracy"] == pytest.approx(1 / 4)


def test_parquet_needs_a_reader_or_its_conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mlvu_dev.parquet"
    file.write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"mlvu_dev\.parquet: parquet is read by pyarrow, which is not there; pip ins"):
        get_task("mlvu").load("dev_packed", tmp_path)
    rows = read_json(FIXTURES / "mlvu/mlvu_dev.json")
    fake, parquet = ModuleType("pyarrow"), ModuleType("pyarrow.parquet")
    parquet.read_table = lambda path: SimpleNamespace(to_pylist=lambda: rows if path == file else [])
    fake.parquet = parquet
    monkeypatch.setitem(sys.modules, "pyarrow", fake)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", parquet)
    assert get_task("mlvu").load("dev_packed", tmp_path) == load_fixture("mlvu", "dev_packed")


def test_subtitles_must_be_prepared(tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "videomme", tmp_path / "videomme")
    root = tmp_path / "videomme"
    (root / "subtitles_32.json").write_text("{}")
    with pytest.raises(UserError, match=r"record 1 is about abcDEF12345, which subtitles_32.json does not name"):
        get_task("videomme").load("test_subtitles", root)
    (root / "subtitles_32.json").unlink()
    with pytest.raises(UserError, match=r"subtitles_32\.json: no such file; expected what `pave prepare videomme`"):
        get_task("videomme").load("test_subtitles", root)


def test_music_avqa_templates() -> None:
    golden = read_json(GOLDEN / "scoring/annotation_conversion.json")["music_avqa_template_filling"]
    for raw, filled in zip(golden["input"], golden["output"]):
        values = json.loads(raw["templ_values"])
        assert fill_template(raw["question_content"], values) == filled["question_content"]
    with pytest.raises(ValueError, match="2 places in '<A> and <B>' for 1 values"):
        fill_template("<A> and <B>", ["x"])


BROKEN = [
    ("avsd", "test", lambda d: d["dialogs"][1]["dialog"].clear(), "record 2 has an empty dialog"),
    ("avsd", "test", lambda d: d["dialogs"][0].pop("image_id"), "record 1 lacks 'image_id'"),
    ("avsd", "test", lambda d: d["dialogs"][2]["dialog"][-1].update(answer="__UNDISCLOSED__"), "without answers"),
    ("avsd", "test", lambda d: d["dialogs"][2]["dialog"][1].update(answer=None), "has nothing as 'answer', expected a"),
    ("avqa", "val", lambda d: d[2].update(answer=4), "record 3 has 4 options and answer 4, expected four and 0 to 3"),
    ("avqa", "val", lambda d: d[1]["multi_choice"].pop(), "record 2 has 3 options"),
    ("avqa", "val", lambda d: d.insert(1, "x"), "record 2 lacks 'multi_choice'"),
    ("music_avqa", "test", lambda d: d[1].update(templ_values="[]"), "record 2 has 2 places"),
    ("music_avqa", "test", lambda d: d[1].update(type="Audio"), "record 2 has 'Audio' as 'type', expected texts as"),
    ("scanqa", "val", lambda d: d[0].update(answers=[]), r"record 1 has \[\] as 'answers', expected texts"),
    ("sqa3d", "test", lambda d: d[3].pop("situation"), "record 4 lacks 'situation'"),
    ("egoexo", "val", lambda d: d["annotations"][0].pop("proficiency_score"), "record 1 lacks 'proficiency_score'"),
    ("egoexo", "val", lambda d: d["annotations"][0].update(proficiency_score="Pro"), "has the level 'Pro', expected"),
    ("sqa3d", "test_task", lambda d: d["questions"][1].update(question_id=7), "record 2 is question 7, which the ann"),
    ("mlvu", "dev", lambda d: d[0]["candidates"].extend("abc"), "record 1 has 7 candidates, expected at most 6"),
    ("mlvu", "dev_packed", lambda d: d[1].update(answer="E"), "record 2 has the answer 'E', expected one of A, B, C"),
    ("mlvu", "dev_packed", lambda d: d[0].update(question="What?"), "has a question without the option 'a pan'"),
    ("llava_video", "train", lambda d: d[0]["conversations"].pop(), r"has turns of \['human'\], expected human and g"),
]


@pytest.mark.parametrize(("name", "split", "damage", "message"), BROKEN)
def test_a_bad_record_is_named_and_counted(name: str, split: str, damage, message: str, tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / name, tmp_path / name)
    path = get_task(name).files.get(split, "2_3_m_youtube_v0_1/2_3_m_youtube_oe_v0_1_qa_processed.json")
    file = (tmp_path / name / path).with_suffix(".json")
    data = read_json(file)
    damage(data)
    file.write_text(json.dumps(data))
    with pytest.raises(UserError, match=message) as caught:
        get_task(name).load(split, tmp_path / name)
    assert str(file.with_suffix("")) in str(caught.value)
    assert "(1 of " in str(caught.value)


def test_all_bad_records_are_counted_and_broken_json_is_named(tmp_path: Path) -> None:
    file = tmp_path / "annotation/val_qa.json"
    file.parent.mkdir()
    file.write_text(json.dumps([{}, {"multi_choice": 3}, []]))
    with pytest.raises(UserError, match=r"record 1 lacks 'multi_choice' \(3 of 3 records are unusable\)"):
        get_task("avqa").load("val", tmp_path)
    for text, message in (
        ("[1,", r"not valid JSON \(Expecting value.*\); expected this task's annotations"),
        ('{"a": 1}', r"not this task's annotations \(found an object, expected a list\)"),
        ("\xff", "not valid JSON"),
    ):
        file.write_bytes(text.encode("latin-1"))
        with pytest.raises(UserError, match=rf"val_qa\.json: {message}"):
            get_task("avqa").load("val", tmp_path)
