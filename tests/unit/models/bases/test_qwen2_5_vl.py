"""Qwen2.5-VL: the same numbers as transformers at any size, with its own positions; frames, pixels, prompts, errors."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.base_runs import (
    CASES,
    compute_logits,
    make_batch,
    make_samples,
    tiny_run_config,
    with_all_labels,
    with_frames,
)
from helpers.tiny_model import TinySetup
from torch import Tensor
from transformers import PreTrainedModel, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessorPil

from pave.checkpoints import build
from pave.config import Config
from pave.data.collate import Sample, collate
from pave.data.dataset import QuestionDataset
from pave.models.bases import _qwen_vl, qwen2_5_vl, qwen3_vl
from pave.models.patched_model import PatchedModel
from pave.types import VIDEO_TOKEN_ID, UserError

CASE = CASES["qwen2_5_vl"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return CASE.config(CASE.make(tmp_path_factory.mktemp("qwen")))


def transformers_inputs(hf: PreTrainedModel, samples: list[Sample], left: bool = False) -> dict[str, Tensor]:
    """What the processor of transformers gives for these samples."""
    batch = collate(samples, hf.generation_config.pad_token_id, left)
    grids, patches = [], []
    for sample in samples:
        rows, height, width = len(sample.pixels), sample.pixels.shape[-2] // 14, sample.pixels.shape[-1] // 14
        grids.append((rows, height, width))
        x = sample.pixels.view(1, rows, 2, 3, height // 2, 2, 14, width // 2, 2, 14)
        x = x.permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9)
        patches.append(x.reshape(rows * height * width, 3 * 2 * 14 * 14))
    return {
        "input_ids": torch.where(batch["ids"] == VIDEO_TOKEN_ID, hf.config.video_token_id, batch["ids"]),
        "attention_mask": batch["mask"].long(),
        "pixel_values_videos": torch.cat(patches),
        "video_grid_thw": torch.tensor(grids),
        "second_per_grid_ts": torch.tensor([1.0, 3.0]),  # 6 frames at .5 and 1.5 s are 3 rows, 1 and 3 s apart
        "mm_token_type_ids": 2 * (batch["ids"] == VIDEO_TOKEN_ID).int(),
    }


@pytest.mark.parametrize("sizes", [CASE.sizes[:1] * 2, CASE.sizes], ids=["one size", "two sizes"])
@torch.no_grad()
def test_logits_and_answers_are_those_of_the_transformers_class(config: Config, sizes: list[tuple[int, int]]) -> None:
    model = PatchedModel(build.load_base(config.base), {})
    hf = Qwen2_5_VLForConditionalGeneration.from_pretrained(config.base.path).eval()
    samples, pad_id = make_samples(config, model.base, sizes), model.base.tokenizer.pad_token_id
    batch = make_batch(samples, pad_id)
    assert isinstance(batch["pixels"], list) == (sizes[0] != sizes[1])
    valid = batch["mask"]
    expected = hf(**transformers_inputs(hf, samples)).logits
    assert torch.equal(compute_logits(model, batch)[valid], expected[valid])
    logits = model(**{**with_all_labels(batch), "sides": {}})["logits"]
    assert torch.equal(logits, expected[:, :-1][valid[:, 1:]])
    plain = compute_logits(model, batch, position_ids=None)
    assert not torch.allclose(plain[valid], expected[valid], atol=1e-3)  # these positions are no detail

    questions = make_samples(config, model.base, sizes, answer=None)
    inputs = transformers_inputs(hf, questions, left=True)
    answers = hf.generate(**inputs, max_new_tokens=6, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    assert torch.equal(model.generate(**make_batch(questions, pad_id, left=True), max_new_tokens=6), answers)


@torch.no_grad()
def test_positions_of_a_video(config: Config) -> None:
    base = build.load_base(config.base)
    [sample] = make_samples(config, base, CASE.sizes[:1], answer=None)
    assert sample.pixels.shape == (3, 6, 84, 112)
    assert sample.frame_seconds.tolist() == [0.25, 1.25, 2.25]
    video = [sample.pixels], [sample.frame_seconds]

    ids = torch.tensor([[5, 6, *[VIDEO_TOKEN_ID] * 36, 7, 8]])
    positions = base.position_ids(ids, ids != 0, *video)[:, 0]
    assert positions[:, :2].tolist() == [[0, 1]] * 3
    assert positions[:, 2:38].view(3, 3, 3, 4)[0, :, 0, 0].tolist() == [2, 4, 6]  # 2 a second
    assert positions[1, 2:38].view(3, 3, 4)[0, :, 0].tolist() == [2, 3, 4]
    assert positions[2, 2:38].view(3, 3, 4)[0, 0].tolist() == [2, 3, 4, 5]
    assert positions[:, 38:].tolist() == [[6, 7]] * 3

    cut = base.position_ids(ids[:, :20], ids[:, :20] != 0, *video)[:, 0]
    assert torch.equal(cut, positions[:, :20])
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], 1)
    assert torch.equal(base.position_ids(padded, padded != 0, *video)[:, 0, 3:], positions)
    text = torch.tensor([[5, 6, 7], [0, 5, 6]])
    assert base.position_ids(text, text != 0, [], None)[0].tolist() == [[0, 1, 2], [0, 0, 1]]


@torch.no_grad()
def test_two_answers_about_one_video_stand_where_each_alone_would(config: Config) -> None:
    """Preference optimisation gives the rows of a second answer no videos of their own."""
    model = build.create(config).eval()
    samples, pad_id = make_samples(config, model.base, CASE.sizes, "a dog"), model.base.tokenizer.pad_token_id
    shared = [*samples, *(sample._replace(pixels=None) for sample in samples)]
    actual, expected = (model(**make_batch(rows, pad_id))["logits"] for rows in (shared, [*samples, *samples]))
    assert torch.equal(actual, expected)


def test_frames_as_the_processors_of_both_models_choose_them() -> None:
    """By hand: two a second, at least 4 and at most 768; in pairs at equal steps, or from end to end."""
    assert qwen2_5_vl.Base.sample_frames(300, 30.0).tolist() == list(range(0, 300, 15))
    assert qwen2_5_vl.Base.sample_frames(7, 25.0).tolist() == [0, 1, 3, 5]
    assert [qwen2_5_vl.Base.sample_frames(n, 25.0).tolist() for n in (3, 1)] == [[0, 1], [0, 0]]
    assert len(qwen2_5_vl.Base.sample_frames(100_000, 25.0)) == len(qwen3_vl.Base.sample_frames(100_000, 25.0)) == 768
    assert qwen3_vl.Base.sample_frames(61, 12.0).tolist() == [0, 7, 13, 20, 27, 33, 40, 47, 53, 60]
    assert qwen3_vl.Base.sample_frames(3, 25.0).tolist() == [0, 1, 2]


def test_the_last_of_an_odd_number_of_frames_counts_twice(config: Config) -> None:
    config = with_frames(config, 5)
    [sample] = make_samples(config, build.load_base(config.base), [(56, 56)], answer=None)
    assert sample.pixels.shape == (3, 6, 56, 56)
    assert torch.equal(sample.pixels[2, :3], sample.pixels[2, 3:])
    assert sample.frame_seconds.tolist() == [0.25, 1.25, 2.0]


def test_prompt_is_the_chat_template(config: Config) -> None:
    base = build.load_base(config.base)
    text = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|><|video_pad|>"
    text += "<|vision_end|>what is heard?<|im_end|>\n<|im_start|>assistant\n"
    tokens = base.tokenizer(text, add_special_tokens=False).input_ids
    expected = [VIDEO_TOKEN_ID if token == base.hf.config.video_token_id else token for token in tokens]
    assert base.chat("what is heard?").ids == expected


@pytest.mark.parametrize("size", [(84, 112), (90, 131), (20, 300), (500, 640), (28, 28)])
def test_pixels_are_those_of_the_processor(config: Config, size: tuple[int, int]) -> None:
    base = build.load_base(config.base)
    frame = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    limits = {"shortest_edge": 28 * 28 * 4, "longest_edge": 28 * 28 * 12}
    expected = Qwen2VLImageProcessorPil(size=limits)(frame, return_tensors="pt")
    pixels = base.preprocess(frame[None])  # one frame, taken twice, as the processor does with an image
    patches: list[Tensor] = []
    base.vision_tower.patch_embed.register_forward_pre_hook(lambda _, inputs: patches.append(inputs[0]))
    base.encode(pixels[None])
    assert [[1, pixels.shape[-2] // 14, pixels.shape[-1] // 14]] == expected["image_grid_thw"].tolist()
    assert torch.allclose(patches[0], expected["pixel_values"], atol=1e-6, rtol=0)


def test_settings_of_the_processor(config: Config, tmp_path: Path) -> None:
    assert _qwen_vl.read_pixel_settings(tmp_path) == _qwen_vl.PixelSettings()
    folder = Path(config.base.path)
    assert _qwen_vl.read_pixel_settings(folder)[:2] == (3136, 9408)
    for model in (qwen2_5_vl.Base.load(str(folder)), qwen2_5_vl.Base.load(str(folder), weights=False)):
        assert model.pixel_settings == _qwen_vl.read_pixel_settings(folder)
    processor = {"size": {"shortest_edge": 1000, "longest_edge": 2000}, "image_mean": [0.5] * 3}
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(processor))
    settings = _qwen_vl.read_pixel_settings(tmp_path)
    assert settings[:3] == (1000, 2000, [0.5] * 3)
    assert settings.std == _qwen_vl.PixelSettings().std


def test_stored_tokens_other_models_and_thin_frames_are_refused(
    config: Config, tiny_setup: TinySetup, tmp_path: Path
) -> None:
    base = build.load_base(config.base)
    stored = tiny_run_config(config, tiny_setup)
    stored = dataclasses.replace(stored, data=dataclasses.replace(stored.data, video_tokens="features/audio"))
    questions = QuestionDataset(stored, base, "train", with_answers=True, check_files=False)
    with pytest.raises(UserError, match=r"qwen2_5_vl.*leave data\.video_tokens empty"):
        questions[0]
    with pytest.raises(UserError, match="600 x 2 pixels"):
        base.preprocess(np.zeros((2, 2, 600, 3), np.uint8))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3_vl"}))
    with pytest.raises(UserError, match="model_type is qwen3_vl, expected qwen2_5_vl"):
        qwen2_5_vl.Base.load(str(tmp_path))
