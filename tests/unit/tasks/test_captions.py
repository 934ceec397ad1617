"""Caption metrics equal pycocoevalcap's, from the same words and from the same texts."""

from __future__ import annotations

import logging
import shutil
from importlib.util import find_spec

import pytest
from helpers.no_meteor import without_meteor as without_meteor
from helpers.paths import GOLDEN, read_json
from helpers.task_data import load_fixture

from pave.tasks.base import get_task
from pave.tasks.metrics import captions
from pave.tasks.metrics.captions import bleu, cider, rouge_l
from pave.tasks.metrics.meteor import meteor
from pave.tasks.metrics.ptb_tokenizer import tokenize
from pave.types import Prediction, UserError

# What the Java tokenizer makes of these texts, without the punctuation that pycocoevalcap drops.
CUT = [
    ("He doesn't, can't; I'm, you're, she'll, it's dogs'", "he does n't ca n't i 'm you 're she 'll it 's dogs"),
    ("the U.S. a.m. Mr. Smith etc. e.g. vs. no. 5", "the u.s. a.m. mr. smith etc. e.g. vs. no. 5"),
    ("\"hello\" 'hello' ``hi'' `x` ’tis it’s “quoted” ‘single’", "hello hello hi x tis it 's quoted single"),
    ("a—b a–b wait... wait.. wait.... … ; : -- - --- ----", "a b a b wait wait wait"),
    ("yes! what? what?! no!! ok??", "yes what what ?! no !! ok ??"),
    ("end. Sentence two. and three.done", "end sentence two and three.done"),
    ("wouldn't've shouldn't ain't he'd've", "would n't 've should n't ai n't he 'd 've"),
    ("word-word- -word semi - colon t-shirt", "word-word word semi colon t-shirt"),
    ("plan b. then c, and d.", "plan b. then c and d."),
    ("is it no. 5? no. five", "is it no. 5 no five"),
    ("2-3 people, 3d, 16:9, 24/7, 10,000,000 at 12:30pm", "2-3 people 3d 16:9 24/7 10,000,000 at 12:30 pm"),
    (".5 0.5. 5. -5 +5.5 5% $5 #1 3 :30", ".5 0.5 5 -5 +5.5 5 % $ 5 # 1 3 :30"),
    ("three,30 ten:30 '90s '10 '105 '50% the 4.5-inch", "three ,30 ten :30 '90s '10 105 50 % the 4.5-inch"),
    ("hello,world left/right white(ish) under_score", "hello world left/right white -lrb- ish -rrb- under_score"),
    ("cannot gonna wanna o'clock ma'am o'brien s'mores", "can not gon na wan na o'clock ma'am o'brien s'mores"),
    ("*smiles* he\\she _hi_ ~5 <5", "* smiles * he \\ she _ hi _ ~ 5 < 5"),
    ("the dogs ' toys, its' own, one 's own", "the dogs toys its own one 's own"),
]  # fmt: skip


def corpus(references: str) -> tuple[list[str], list[tuple[list[list[str]], list[str]]], dict]:
    """Ids, words and expected scores, with all references of each item or the first alone."""
    golden = read_json(GOLDEN / "scoring/coco_scores.json")
    count = 1 if references == "first_reference_only" else None
    cut = golden["tokenized"]
    items = [([r.split() for r in texts["references"][:count]], texts["prediction"].split()) for texts in cut.values()]
    return list(cut), items, golden[references]


@pytest.mark.parametrize("references", ["multi_reference", "first_reference_only"])
def test_equals_pycocoevalcap(references: str) -> None:
    ids, items, expected = corpus(references)
    per_item = [expected["per_item"][i] for i in ids]
    assert len(ids) == 40
    assert bleu(items) == pytest.approx([expected["corpus"][f"Bleu_{n}"] for n in range(1, 5)], abs=1e-12)
    for item, scores in zip(items, per_item):
        assert bleu([item]) == pytest.approx([scores[f"Bleu_{n}"] for n in range(1, 5)], abs=1e-12)
        assert rouge_l(*item) == pytest.approx(scores["ROUGE_L"], abs=1e-12)
    assert cider(items) == pytest.approx([scores["CIDEr"] for scores in per_item], abs=1e-12)


def test_score_cuts_and_scores_as_pycocoevalcap() -> None:
    golden = read_json(GOLDEN / "scoring/coco_scores.json")
    result = captions.score([(item["references"], item["prediction"]) for item in golden["items"]])
    expected = golden["multi_reference"]["corpus"]
    for name in ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE_L", "CIDEr"):
        assert result[name] == pytest.approx(expected[name.replace("BLEU-", "Bleu_")], abs=1e-12), name


def test_words_are_those_of_the_java_tokenizer() -> None:
    golden = read_json(GOLDEN / "scoring/coco_scores.json")
    for item, cut in zip(golden["items"], golden["tokenized"].values()):
        assert tokenize(item["prediction"]) == cut["prediction"].split()
        for text, words in zip(item["references"], cut["references"]):
            assert tokenize(text) == words.split()
    for text, words in CUT:
        assert tokenize(text) == words.split(), text


def test_equals_pycocoevalcap_on_texts_cut_at_spaces() -> None:
    golden = read_json(GOLDEN / "scoring/coco_scores.json")
    expected = golden["no_ptb_tokenizer"]
    items = [([r.split() for r in item["references"]], item["prediction"].split()) for item in golden["items"]]
    assert bleu(items) == pytest.approx([expected[f"Bleu_{n}"] for n in range(1, 5)], abs=1e-12)
    assert sum(cider(items)) / len(items) == pytest.approx(expected["CIDEr"], abs=1e-12)


def test_only_rouge_compares_empty_texts_and_takes_a_fraction_as_one_word() -> None:
    """As in pycocoevalcap, of which these are the numbers; an answer that is not there is like nothing."""
    result = captions.score([(("?",), "..."), (("1 1/2 cups", "a cup"), "1 1/2"), (("a dog",), "a dog")])
    assert result["ROUGE_L"] == pytest.approx((1 + 0.6288659793814433 + 1) / 3)
    assert result["BLEU-1"] == pytest.approx(1)
    assert captions.score([(("?",), None), (("a dog",), "a dog")])["ROUGE_L"] == pytest.approx(0.5)


def test_no_line_break_shifts_the_scores() -> None:
    """In pycocoevalcap each of these gives later predictions the references of their neighbours."""
    items = [(("a red door",), "a red\u2028door"), (("two dogs run",), "two\rdogs\x85run"), (("he sits",), "he sits")]
    assert captions.score(items)["ROUGE_L"] == pytest.approx(1)


def test_missing_and_empty_answers_lower_every_score() -> None:
    questions = load_fixture("avsd", "test")
    predictions = [Prediction(q.qid, q.answers[0]) for q in questions]
    complete = get_task("avsd").score(zip(questions, predictions))
    for first in (None, Prediction("", "")):
        reduced = get_task("avsd").score(zip(questions, [first, *predictions[1:]]))
        assert all(reduced[name] < complete[name] for name in complete if name not in ("n", "missing", "empty"))
        assert (reduced["missing"], reduced["empty"]) == ((1, 0) if first is None else (0, 1))


def test_scanqa_cleans_before_it_compares() -> None:
    questions = load_fixture("scanqa", "val")
    predictions = ["Brown.", "two", "To the rigth of THE white desk"]
    result = get_task("scanqa").score((q, Prediction(q.qid, text)) for q, text in zip(questions, predictions))
    assert (result["EM"], result["EM_refined"]) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert result["BLEU-1"] == pytest.approx(6 / 7)


def test_meteor_is_left_out_with_a_warning(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(captions, "meteor", meteor)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="needs java and pycocoevalcap"):
        meteor([([["a"]], ["a"])])
    with caplog.at_level(logging.WARNING):
        assert "METEOR" not in captions.score([(("a dog",), "a dog")])
    assert "METEOR is left out" in caplog.text


@pytest.mark.skipif(not (shutil.which("java") and find_spec("pycocoevalcap")), reason="needs java and pycocoevalcap")
def test_meteor_equals_pycocoevalcap() -> None:
    _, items, expected = corpus("multi_reference")
    assert meteor(items) == pytest.approx(expected["corpus"]["METEOR"], abs=1e-12)
