"""What questions share is computed once, and the answers are those of one question at a time, token for token."""

from __future__ import annotations

import copy
import dataclasses
import time
from typing import Any

import pytest
import torch
from helpers.official_runs import FRAMES, SUMMARY, audio, patched
from helpers.random_checkpoints import save_trained
from helpers.tiny_model import TinySetup, make_config

from pave.checkpoints import build
from pave.config import Config
from pave.data.collate import Sample, collate, expand
from pave.data.dataset import Questions
from pave.evaluation.evaluate import Videos
from pave.inference import generation
from pave.inference.generation import Asked, Decoding
from pave.models.patched_model import Pave
from pave.types import VIDEO, SideTokens, UserError

NEW = 10


@pytest.fixture(scope="module")
def ready(tiny_setup: TinySetup, tmp_path_factory: pytest.TempPathFactory) -> tuple[Pave, Config]:
    """Random weights with a repetition penalty, so that answers hold many different tokens."""
    folder = save_trained(make_config(*tiny_setup), tmp_path_factory.mktemp("answer") / "ckpt", seed=3)
    model, config = build.load(folder)
    model.base.hf.generation_config.repetition_penalty = 1.3
    return model, config


@pytest.fixture(scope="module")
def asked(ready: tuple[Pave, Config]) -> list[Asked]:
    """Three videos: with history and without, one question the beginning of another, one twice, one alone and deaf."""
    model, config = ready
    data = Questions(config, model.base, "train", with_answers=False)
    videos = [data[i] for i in (0, 5, 10)]
    turns = (("Which sound is heard?", "a bell"), ("And which shape is on the left?", "the star"))
    talks = [
        [("Which?", ()), ("Which sound is heard? Answer with one word.", ()), ("Why is it so?", turns), ("Which?", ())],
        [("Which color is the bigger shape?", turns[:1]), ("Which color is it?", turns)],
        [("Which shape is blue?", ())],
    ]
    groups = [
        Asked(sample, [prompt(model, text, history) for text, history in talk]) for sample, talk in zip(videos, talks)
    ]
    groups[0].prompts.append(groups[0].prompts[2][:-7])
    groups[2] = groups[2]._replace(sample=videos[2]._replace(sides={"audio": None}))
    return groups


def prompt(model: Pave, text: str, history: tuple[tuple[str, str], ...]) -> list[int]:
    encoded = model.base.chat(text, history)
    return expand(encoded.ids, encoded.labels, model.base.visual_tokens(4), 999)[0]


def one_by_one(model: Pave, asked: list[Asked], how: Decoding) -> list[list[list[int]]]:
    """Each question in a batch of its own through `generate` of transformers."""
    said = []
    for a in asked:
        said.append([])
        for ids in a.prompts:
            batch = collate([a.sample._replace(ids=ids, labels=[])], model.base.tokenizer.pad_token_id, left=True)
            del batch["labels"]
            new = model.generate(**batch, max_new_tokens=how.max_new_tokens)[0].tolist()
            said[-1].append(new[: next((i for i, token in enumerate(new) if token in how.end), len(new))])
    return said


def with_ends(model: Pave, monkeypatch: pytest.MonkeyPatch, ends: list[int]) -> Decoding:
    monkeypatch.setattr(model.base.hf.generation_config, "eos_token_id", ends)
    return generation.decoding(model, NEW)


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_shared_answers_equal_those_of_one_question_at_a_time(
    ready: tuple[Pave, Config], asked: list[Asked], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = ready
    how = with_ends(model, monkeypatch, [model.base.tokenizer.eos_token_id])
    plain = one_by_one(model, asked, how)
    flat = [tokens for video in plain for tokens in video]
    assert len({tuple(tokens) for tokens in flat}) >= 6
    assert generation.answers(model, asked, how, rows) == plain
    # Tokens that were said early, late and never now end the answers of some.
    how = with_ends(model, monkeypatch, [flat[0][1], flat[4][5], flat[7][7]])
    plain = one_by_one(model, asked, how)
    assert len({len(tokens) for video in plain for tokens in video}) >= 3
    assert generation.answers(model, asked, how, rows) == plain
    # What counts as said before the first word now is the first word of some.
    monkeypatch.setattr(model.base.hf.generation_config, "bos_token_id", flat[0][0])
    how = generation.decoding(model, NEW)
    assert one_by_one(model, asked, how) != plain
    assert generation.answers(model, asked, how, rows) == one_by_one(model, asked, how)


def test_without_a_penalty_and_for_one_question(ready: tuple[Pave, Config], asked: list[Asked]) -> None:
    model, _ = ready
    bare = copy.deepcopy(model)
    bare.base.hf.generation_config.repetition_penalty = None
    how = generation.decoding(bare, NEW)
    assert how.repetition_penalty == 1.0
    assert generation.answers(bare, asked, how, 4) == one_by_one(bare, asked, how)
    assert generation.answers(bare, asked[2:], how._replace(max_new_tokens=1), 1) == [
        [one_by_one(bare, asked[2:], how)[0][0][:1]]
    ]


def test_prompts_cut_inside_the_video(ready: tuple[Pave, Config], asked: list[Asked]) -> None:
    model, _ = ready
    cut = [a._replace(prompts=[ids[: 15 + i] for i, ids in enumerate(a.prompts)]) for a in asked]
    assert all(ids[-1] == VIDEO for a in cut for ids in a.prompts)
    how = generation.decoding(model, NEW)
    assert generation.answers(model, cut, how, 4) == one_by_one(model, cut, how)


def test_the_published_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens recorded from the published code, which penalises repetition: two questions that share a video."""
    model, stored = patched(), SUMMARY["d_generate"]
    frames = model.base.preprocess(FRAMES["video_a"])
    prompts = [
        expand(stored[f"{q}_ids"], stored[f"{q}_ids"], model.base.visual_tokens(4), 32768)[0] for q in ("q0", "q1")
    ]
    side = SideTokens(audio("audio/vid_a")["audio"]["x"][0])
    how = generation.decoding(model, 12)
    assert how.repetition_penalty == 1.1
    (said,) = generation.answers(model, [Asked(Sample([], [], frames, None, {"audio": side}), prompts)], how, 8)
    for q, tokens in zip(("q0", "q1"), said):
        want = stored[f"{q}_fp32_official_genconfig"]["tokens"][1:]
        assert tokens == want[: next((i for i, token in enumerate(want) if token in how.end), len(want))]


def test_it_stops_when_all_have_ended(ready: tuple[Pave, Config], asked: list[Asked]) -> None:
    model, _ = ready
    how, steps = generation.decoding(model, NEW), []
    hook = model.base.head.register_forward_hook(lambda *arguments: steps.append(1))
    assert generation.answers(model, asked, how._replace(end=list(range(500))), 100) == [[[]] * 5, [[]] * 2, [[]]]
    hook.remove()
    assert len(steps) == 1


def test_each_video_passes_tower_and_patch_once(
    ready: tuple[Pave, Config], asked: list[Asked], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = ready
    seen = {"tower": 0, "patch": 0}
    encode, update = model.base.encode, Pave._update

    def counted(pixels: torch.Tensor) -> Any:
        seen["tower"] += len(pixels)
        return encode(pixels)

    def patched(self: Pave, patch: Any, query: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen["patch"] += len(query)
        return update(self, patch, query, *rest)

    monkeypatch.setattr(model.base, "encode", counted)
    monkeypatch.setattr(Pave, "_update", patched)
    generation.answers(model, asked, generation.decoding(model, 2), 3)
    assert seen == {"tower": 3, "patch": 3}


def test_what_greedy_search_here_cannot_do_is_refused(
    ready: tuple[Pave, Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ready[0].base.hf.generation_config, "no_repeat_ngram_size", 3)
    with pytest.raises(UserError, match="no_repeat_ngram_size=3, which is not done here"):
        generation.decoding(ready[0], 4)


@pytest.mark.slow
def test_three_times_the_questions_a_second(tiny_setup: TinySetup, tmp_path: Any) -> None:
    """Five questions a video, from the files to the tokens, beside one question at a time without sharing."""
    config = make_config(*tiny_setup)
    config = dataclasses.replace(config, base=dataclasses.replace(config.base, frames=32))
    model, config = build.load(save_trained(config, tmp_path / "ckpt", seed=3))
    data, how = Questions(config, model.base, "train", with_answers=False), generation.decoding(model, 8)
    groups = [list(range(i, i + 5)) for i in range(0, len(data), 5)]

    def together() -> list[list[list[int]]]:
        videos = Videos(data, groups)
        items = [videos[i] for i in range(len(videos))]
        return [tokens for i in range(len(items)) for tokens in generation.answers(model, [items[i]], how, 5)]

    def alone() -> list[list[list[int]]]:
        items = [[Asked(data[i], [data[i].ids]) for i in group] for group in groups]
        return [[one_by_one(model, [a], how)[0][0] for a in group] for group in items]

    seconds, said = {}, {}
    for run in (together, alone, together, alone):
        start = time.process_time()
        said[run] = run()
        seconds[run] = min(seconds.get(run, 1e9), time.process_time() - start)
    assert said[together] == said[alone]
    assert seconds[alone] > 3 * seconds[together], seconds
