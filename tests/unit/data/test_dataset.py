"""Question -> Sample -> batch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_model import TinySetup, make_config

from pave.checkpoints import build
from pave.data.collate import Sample, collate, expand_video_tokens, pad_rows
from pave.data.dataset import QuestionDataset, make_sample, media_paths
from pave.media.video import read_clip
from pave.types import IGNORE_INDEX, VIDEO_TOKEN_ID, Question, SideTokens, UserError


def sample(length: int, steps: int | None, video: bool = True) -> Sample:
    side = None if steps is None else SideTokens(torch.full((steps, 1, 2), float(length)), torch.arange(steps) + 1.0)
    pixels = torch.zeros(1, 3, 4, 4) if video else None
    return Sample([7] * length, [IGNORE_INDEX] * length, pixels, torch.zeros(1) if video else None, {"audio": side})


def test_expand_makes_room_and_cuts_the_end() -> None:
    ids, labels = [1, VIDEO_TOKEN_ID, 2], [1, IGNORE_INDEX, 2]
    expected_ids, expected_labels = [1, *[VIDEO_TOKEN_ID] * 3, 2], [1, *[IGNORE_INDEX] * 3, 2]
    assert expand_video_tokens(ids, labels, 3, 99) == (expected_ids, expected_labels)
    assert expand_video_tokens(ids, labels, 3, 3) == (expected_ids[:3], expected_labels[:3])


def test_pad_left_and_right() -> None:
    assert pad_rows([[1], [2, 3]], 0).tolist() == [[1, 0], [2, 3]]
    assert pad_rows([[1], [2, 3]], 0, left=True).tolist() == [[0, 1], [2, 3]]


def test_collate_pads_text_and_time() -> None:
    batch = collate([sample(2, 3), sample(4, 5), sample(3, None)], pad_id=9)
    assert batch["ids"].tolist() == [[7, 7, 9, 9], [7] * 4, [7, 7, 7, 9]]
    assert batch["mask"].sum(1).tolist() == [2, 4, 3]
    side = batch["sides"]["audio"]
    assert side["steps"] == [3, 5, 0]
    assert side["x"].shape == (3, 5, 1, 2)
    assert side["x"][0, 3:].abs().sum() == side["x"][2].abs().sum() == 0
    assert [len(s) for s in side["seconds"]] == [3, 5, 0]


def test_collate_without_videos_or_without_any_side() -> None:
    assert "pixels" not in collate([sample(2, 3, video=False)], 0)
    assert collate([sample(2, None)], 0)["sides"] == {}
    mixed = collate([sample(2, 3, video=False), sample(2, 4)], 0)
    assert mixed["sides"]["audio"]["steps"] == [4]
    assert len(mixed["pixels"]) == 1


def test_shuffled_sides_are_never_a_questions_own(tiny_setup: TinySetup) -> None:
    config = make_config(*tiny_setup)
    base = build.load_base(config.base)
    plain, shuffled = (QuestionDataset(config, base, "test", with_answers=False) for _ in range(2))
    shuffled.shuffle_sides()
    sources = [shuffled.questions[i].video for i in shuffled.side_source]
    videos = [question.video for question in shuffled.questions]
    assert all(source != video for source, video in zip(sources, videos))
    assert set(sources) == set(videos)
    expected, actual = plain[0], shuffled[0]
    assert expected.sides["audio"].x.shape != actual.sides["audio"].x.shape or not torch.equal(
        expected.sides["audio"].x, actual.sides["audio"].x
    )
    assert torch.equal(expected.pixels, actual.pixels)
    assert expected.ids == actual.ids


def test_answer_beyond_the_longest_sequence_is_an_error(tiny_setup: TinySetup) -> None:
    config = make_config(*tiny_setup)
    base = build.load_base(config.base)
    clip = read_clip(tiny_setup.data / "videos/train_00000.mp4", 4)
    assert make_sample(config, base, "Which?", clip, {}, answer="this").labels.count(IGNORE_INDEX) > 0
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, max_length=20))
    with pytest.raises(UserError, match=r"beyond data\.max_length=20"):
        make_sample(config, base, "Which?", clip, {}, answer="this")


@pytest.mark.parametrize("path", ["/elsewhere/a.mp4", "../a.mp4", "videos/../../a.mp4"])
def test_no_path_of_a_question_leaves_the_data_root(path: str, tmp_path: Path) -> None:
    good = Question("1", "videos/a..b.mp4", "Which?", ("this",))
    assert media_paths(good, tmp_path) == [tmp_path / "videos/a..b.mp4"]
    paths: list[dict[str, Any]] = [{"video": path}, {"images": ("a.png", path)}, {"features": path}]
    for changes in paths:
        with pytest.raises(UserError, match="question 1 points outside the data root"):
            media_paths(dataclasses.replace(good, **changes), tmp_path)
