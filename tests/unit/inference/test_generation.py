"""Generation with a shared prefix: computed once, and the answers equal those of one question at a time."""

from __future__ import annotations

import copy
from os.path import commonprefix
from typing import Any

import pytest
from helpers.official_runs import FRAMES, SUMMARY, audio, patched
from helpers.random_checkpoints import save_trained
from helpers.tiny_model import TinySetup, make_config

from pave.checkpoints import build
from pave.data.collate import Sample, collate, expand_video_tokens
from pave.data.dataset import QuestionDataset
from pave.inference import generation
from pave.inference.generation import Decoding, PromptGroup
from pave.models.patched_model import PatchedModel
from pave.types import VIDEO_TOKEN_ID, SideTokens, UserError

NEW = 10


@pytest.fixture(scope="module")
def model(tiny_setup: TinySetup, tmp_path_factory: pytest.TempPathFactory) -> PatchedModel:
    """Random weights with a repetition penalty, so that answers hold many different tokens."""
    folder = save_trained(make_config(*tiny_setup), tmp_path_factory.mktemp("answer") / "ckpt", seed=3)
    model, _ = build.load(folder)
    model.base.hf.generation_config.repetition_penalty = 1.3
    return model


@pytest.fixture(scope="module")
def groups(tiny_setup: TinySetup, model: PatchedModel) -> list[PromptGroup]:
    """Three videos: with history and without, one prompt a prefix of another, one twice, one alone and mute."""
    data = QuestionDataset(make_config(*tiny_setup), model.base, "train", with_answers=False)
    samples = [data[i] for i in (0, 5, 10)]
    turns = (("Which sound is heard?", "a bell"), ("And which shape is on the left?", "the star"))
    questions = [
        [("Which?", ()), ("Which sound is heard? Answer with one word.", ()), ("Why is it so?", turns), ("Which?", ())],
        [("Which color is the bigger shape?", turns[:1]), ("Which color is it?", turns)],
        [("Which shape is blue?", ())],
    ]

    prompts = [[encode_prompt(model, text, history) for text, history in video] for video in questions]
    prompts[0].append(prompts[0][2][:-7])
    samples[2] = samples[2]._replace(sides={"audio": None})
    return [PromptGroup(sample, ids) for sample, ids in zip(samples, prompts)]


def encode_prompt(model: PatchedModel, text: str, history: tuple[tuple[str, str], ...]) -> list[int]:
    encoded = model.base.chat(text, history)
    return expand_video_tokens(encoded.ids, encoded.labels, model.base.num_visual_tokens(4), 999)[0]


def one_by_one(model: PatchedModel, groups: list[PromptGroup], decoding: Decoding) -> list[list[list[int]]]:
    """Each prompt in a batch of its own through `generate` of transformers."""

    def answer(sample: Sample, ids: list[int]) -> list[int]:
        batch = collate([sample._replace(ids=ids, labels=[])], model.base.tokenizer.pad_token_id, left=True)
        del batch["labels"]
        new = model.generate(**batch, max_new_tokens=decoding.max_new_tokens)[0].tolist()
        return before_end(new, decoding)

    return [[answer(group.sample, ids) for ids in group.prompts] for group in groups]


def before_end(tokens: list[int], decoding: Decoding) -> list[int]:
    return tokens[: next((i for i, token in enumerate(tokens) if token in decoding.end), len(tokens))]


def set_end(model: PatchedModel, monkeypatch: pytest.MonkeyPatch, end: list[int]) -> Decoding:
    monkeypatch.setattr(model.base.hf.generation_config, "eos_token_id", end)
    return generation.greedy_decoding(model, NEW)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_shared_answers_equal_those_of_one_question_at_a_time(
    model: PatchedModel, groups: list[PromptGroup], batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoding = set_end(model, monkeypatch, [model.base.tokenizer.eos_token_id])
    expected = one_by_one(model, groups, decoding)
    flat = [tokens for video in expected for tokens in video]
    assert len({tuple(tokens) for tokens in flat}) >= 6
    assert generation.answers(model, groups, decoding, batch_size) == expected

    # Tokens that came early, late and never now end the answers of some.
    decoding = set_end(model, monkeypatch, [flat[0][1], flat[4][5], flat[7][7]])
    expected = one_by_one(model, groups, decoding)
    assert len({len(tokens) for video in expected for tokens in video}) >= 3
    assert generation.answers(model, groups, decoding, batch_size) == expected

    # The token that the penalty counts as present from the start now is the first token of some answers.
    monkeypatch.setattr(model.base.hf.generation_config, "bos_token_id", flat[0][0])
    decoding = generation.greedy_decoding(model, NEW)
    changed = one_by_one(model, groups, decoding)
    assert changed != expected
    assert generation.answers(model, groups, decoding, batch_size) == changed


def test_without_a_penalty_and_for_one_question(model: PatchedModel, groups: list[PromptGroup]) -> None:
    bare = copy.deepcopy(model)
    bare.base.hf.generation_config.repetition_penalty = None
    decoding = generation.greedy_decoding(bare, NEW)
    assert decoding.repetition_penalty == 1.0
    expected = one_by_one(bare, groups, decoding)
    assert generation.answers(bare, groups, decoding, 4) == expected
    assert generation.answers(bare, groups[2:], decoding._replace(max_new_tokens=1), 1) == [[expected[2][0][:1]]]


def test_prompts_cut_inside_the_video(model: PatchedModel, groups: list[PromptGroup]) -> None:
    cut = [group._replace(prompts=[ids[: 15 + i] for i, ids in enumerate(group.prompts)]) for group in groups]
    assert all(ids[-1] == VIDEO_TOKEN_ID for group in cut for ids in group.prompts)
    decoding = generation.greedy_decoding(model, NEW)
    assert generation.answers(model, cut, decoding, 4) == one_by_one(model, cut, decoding)


def test_the_official_answers() -> None:
    """Tokens recorded from the official code, which penalises repetition: two questions that share a video."""
    model, recorded = patched(), SUMMARY["d_generate"]
    frames = model.base.preprocess(FRAMES["video_a"])
    prompts = [
        expand_video_tokens(recorded[f"{q}_ids"], recorded[f"{q}_ids"], model.base.num_visual_tokens(4), 32768)[0]
        for q in ("q0", "q1")
    ]
    sample = Sample([], [], frames, None, {"audio": SideTokens(audio("audio/vid_a")["audio"]["x"][0])})
    decoding = generation.greedy_decoding(model, 12)
    assert decoding.repetition_penalty == 1.1
    (actual,) = generation.answers(model, [PromptGroup(sample, prompts)], decoding, 8)
    expected = [recorded[f"{q}_fp32_official_genconfig"]["tokens"][1:] for q in ("q0", "q1")]
    assert actual == [before_end(tokens, decoding) for tokens in expected]


def test_decoding_stops_when_all_answers_have_ended(model: PatchedModel, groups: list[PromptGroup]) -> None:
    decoding, steps = generation.greedy_decoding(model, NEW)._replace(end=list(range(500))), []
    hook = model.base.lm_head.register_forward_hook(lambda *arguments: steps.append(1))
    assert generation.answers(model, groups, decoding, 100) == [[[]] * 5, [[]] * 2, [[]]]
    hook.remove()
    assert len(steps) == 1


def test_each_video_and_each_common_beginning_is_read_once(
    model: PatchedModel, groups: list[PromptGroup], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: dict[str, list[tuple[int, ...]]] = {"encode": [], "patch_update": [], "llm_step": []}

    def count(owner: Any, name: str, argument: int) -> None:
        function = getattr(owner, name)

        def counted(*arguments: Any) -> Any:
            calls[name].append(tuple(arguments[argument].shape[:2]))
            return function(*arguments)

        monkeypatch.setattr(owner, name, counted)

    count(model.base, "encode", 0)
    count(PatchedModel, "patch_update", 2)
    count(generation, "llm_step", 1)
    generation.answers(model, groups, generation.greedy_decoding(model, 2), 100)
    assert [calls["encode"], calls["patch_update"]] == [[(3, 4)], [(3, 4)]]
    # The last token of a prompt gives the first of its answer, so it is never part of the beginning.
    common = [len(commonprefix(group.prompts)) for group in groups]  # noqa: RUF071 - of token ids, not paths
    lengths = [min(length, min(map(len, group.prompts)) - 1) for length, group in zip(common, groups)]
    suffix = max(len(ids) - length for group, length in zip(groups, lengths) for ids in group.prompts)
    assert calls["llm_step"] == [(3, max(lengths)), (8, suffix), (8, 1)]


def test_settings_that_would_change_greedy_answers_are_refused(
    model: PatchedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.base.hf.generation_config, "no_repeat_ngram_size", 3)
    with pytest.raises(UserError, match="no_repeat_ngram_size=3, which is not implemented here"):
        generation.greedy_decoding(model, 4)
