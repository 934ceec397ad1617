"""Prompts and label masks against the official ones, id by id (tests/golden/module/text)."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.paths import GOLDEN, read_json
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from pave.models.bases._qwen_chat import TAG, Turn, encode, tokenize, turns
from pave.types import IGNORE_INDEX, VIDEO_TOKEN_ID

TEXT = GOLDEN / "module/text"
LABELS = {case["case"]: case for case in read_json(TEXT / "labels.json")["cases"]}
PROMPTS = read_json(TEXT / "prompts.json")["templates"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(TEXT / "tokenizer")


def conversation(case: dict[str, Any]) -> list[Turn]:
    """The turns as the official code tokenises them, its video tag already in front."""
    roles = {"human": "user", "gpt": "assistant"}
    return [Turn(roles[t["from"]], t["value"]) for t in case["after_preprocess_video_multimodal"]]


def test_tokenizer_checks(tokenizer: PreTrainedTokenizerBase) -> None:
    checks = read_json(TEXT / "tokenizer_checks.json")["cases"]
    assert len(checks) == 16
    for check in checks:
        assert tokenizer(check["text"], add_special_tokens=False).input_ids == check["ids"]


@pytest.mark.parametrize("name", LABELS)
def test_released_mask(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    expected = LABELS[name]["conv_llava_ov_qwen"]
    actual = encode(tokenizer, conversation(LABELS[name]), "official")
    assert actual.ids == expected["input_ids"]
    # A tag inside an answer leaves an id beyond the vocabulary among the official labels; we ignore that position.
    labels = [IGNORE_INDEX if label in expected["out_of_vocab_labels"] else label for label in expected["labels"]]
    assert actual.labels == labels


@pytest.mark.parametrize("name", [n for n in LABELS if n != "empty_answer"])
def test_answer_mask_is_the_one_of_the_other_official_template(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    expected = LABELS[name]["Qwen2Tokenizer"]
    actual = encode(tokenizer, conversation(LABELS[name]))
    assert actual.ids == expected["input_ids"]
    assert actual.labels == [IGNORE_INDEX if label == VIDEO_TOKEN_ID else label for label in expected["labels"]]


def test_answer_mask_supervises_the_end_of_an_empty_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    actual = encode(tokenizer, conversation(LABELS["empty_answer"]))
    assert tokenizer.decode([i for i in actual.labels if i != IGNORE_INDEX]) == "<|im_end|>\n"


@pytest.mark.parametrize("case", PROMPTS["conv_llava_ov_qwen"] + PROMPTS["qwen_1_5"], ids=lambda c: c["case"])
def test_prompts(case: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    texts = [None if not m else m.replace("<image>", TAG) for m in case["messages"]]
    roles = ("user", "assistant")
    actual = encode(tokenizer, [Turn(roles[i % 2], text) for i, text in enumerate(texts)])
    prompt = case["prompt"].replace("<image>", TAG)
    assert actual.ids == tokenize(tokenizer, prompt)
    stored = case.get("ids_vision_token_image", case.get("ids_vision_token_video", case["ids_default"]))
    assert actual.ids == stored


def test_a_question_about_a_video(tokenizer: PreTrainedTokenizerBase) -> None:
    case = LABELS["two_turns"]
    one, two = (c["value"] for c in case["conversations"][::2])
    replies = [c["value"] for c in case["conversations"][1::2]]
    built = turns(two, ((one.removeprefix("<image>\n"), replies[0]),), replies[1])
    assert encode(tokenizer, built) == encode(tokenizer, conversation(case))
    assert encode(tokenizer, turns(two)).ids[-2:] == tokenize(tokenizer, "assistant\n")[-2:]
