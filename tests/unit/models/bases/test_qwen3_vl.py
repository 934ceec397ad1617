"""Qwen3-VL: the same numbers as transformers, with time stamps, positions and features of inner layers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.base_runs import (
    CASES,
    compute_logits,
    make_batch,
    make_samples,
    make_trained,
    tiny_run_config,
    with_all_labels,
    with_frames,
)
from helpers.tiny_bases import QWEN_TOKENS
from helpers.tiny_model import TinySetup
from torch import Tensor
from transformers import PreTrainedModel, Qwen3VLForConditionalGeneration

from pave.analysis import profile
from pave.analysis.op_counter import Shape
from pave.checkpoints import build
from pave.cli.main import main
from pave.config import Config
from pave.data.collate import Sample, collate
from pave.models import lora
from pave.models.bases import qwen3_vl
from pave.models.patched_model import PatchedModel
from pave.training import train
from pave.types import VIDEO_TOKEN_ID, UserError

CASE = CASES["qwen3_vl"]
WIDTH = 48
"""Of the LLM."""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return CASE.config(CASE.make(tmp_path_factory.mktemp("qwen3")))


def transformers_inputs(hf: PreTrainedModel, samples: list[Sample], left: bool = False) -> dict[str, Tensor]:
    """What the processor of transformers gives for these samples."""
    batch = collate(samples, hf.generation_config.pad_token_id, left)
    grids, patches = [], []
    for sample in samples:
        rows, height, width = len(sample.pixels), sample.pixels.shape[-2] // 16, sample.pixels.shape[-1] // 16
        grids.append((rows, height, width))
        x = sample.pixels.view(1, rows, 2, 3, height // 2, 2, 16, width // 2, 2, 16)
        x = x.permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9)
        patches.append(x.reshape(rows * height * width, 3 * 2 * 16 * 16))
    return {
        "input_ids": torch.where(batch["ids"] == VIDEO_TOKEN_ID, hf.config.video_token_id, batch["ids"]),
        "attention_mask": batch["mask"].long(),
        "pixel_values_videos": torch.cat(patches),
        "video_grid_thw": torch.tensor(grids),
        "mm_token_type_ids": 2 * (batch["ids"] == VIDEO_TOKEN_ID).int(),
    }


@pytest.mark.parametrize("sizes", [CASE.sizes[:1] * 2, CASE.sizes], ids=["one size", "two sizes"])
@torch.no_grad()
def test_logits_and_answers_are_those_of_the_transformers_class(config: Config, sizes: list[tuple[int, int]]) -> None:
    model = PatchedModel(build.load_base(config.base), {})
    hf = Qwen3VLForConditionalGeneration.from_pretrained(config.base.path).eval()
    samples, pad_id = make_samples(config, model.base, sizes), model.base.tokenizer.pad_token_id
    batch = make_batch(samples, pad_id)
    assert isinstance(batch["pixels"], list) == (sizes[0] != sizes[1])
    valid = batch["mask"]
    expected = hf(**transformers_inputs(hf, samples)).logits
    assert torch.equal(compute_logits(model, batch)[valid], expected[valid])
    logits = model(**{**with_all_labels(batch), "sides": {}})["logits"]
    assert torch.equal(logits, expected[:, :-1][valid[:, 1:]])

    # Neither positions nor what is added in inner layers are details.
    plain = compute_logits(model, batch, position_ids=None)
    assert not torch.allclose(plain[valid], expected[valid], atol=1e-3)
    embeds = model.splice(batch["ids"], batch["pixels"], {}, batch["frame_seconds"])
    shallow = compute_logits(model, batch, inputs_embeds=embeds[..., :WIDTH])
    assert not torch.allclose(shallow[valid], expected[valid], atol=1e-3)

    questions = make_samples(config, model.base, sizes, answer=None)
    inputs = transformers_inputs(hf, questions, left=True)
    answers = hf.generate(**inputs, max_new_tokens=6, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    assert torch.equal(model.generate(**make_batch(questions, pad_id, left=True), max_new_tokens=6), answers)


@pytest.mark.parametrize("frames", [2, 5, 8])
@torch.no_grad()
def test_other_numbers_of_frames(config: Config, frames: int) -> None:
    config = with_frames(config, frames)
    model = PatchedModel(build.load_base(config.base), {})
    hf = Qwen3VLForConditionalGeneration.from_pretrained(config.base.path).eval()
    samples = make_samples(config, model.base, CASE.sizes[:1])
    assert len(samples[0].pixels) == math.ceil(frames / 2)
    batch = make_batch(samples, model.base.tokenizer.pad_token_id)
    assert torch.equal(compute_logits(model, batch), hf(**transformers_inputs(hf, samples)).logits)


@torch.no_grad()
def test_tokens_and_positions_of_a_video(config: Config) -> None:
    base = build.load_base(config.base)
    [sample] = make_samples(config, base, CASE.sizes[:1], answer=None)
    assert sample.pixels.shape == (3, 6, 96, 128)
    query, embeds = base.encode(sample.pixels[None])
    assert (query.shape, embeds.shape) == ((1, 3, 12, WIDTH), (1, 3, 12, WIDTH * 3))
    assert torch.equal(embeds[..., :WIDTH], query)

    start, end = base.tokenizer.convert_tokens_to_ids(QWEN_TOKENS[:2])
    stamps = base.tokenizer(["<0.2 seconds>", "<1.2 seconds>", "<2.2 seconds>"]).input_ids
    video_ids = [token for stamp in stamps for token in (*stamp, start, *[VIDEO_TOKEN_ID] * 12, end)]
    assert base.visual_token_ids(3, (96, 128), sample.frame_seconds) == video_ids
    first_id = sample.ids.index(stamps[0][0])
    assert any(sample.ids[i : i + len(video_ids)] == video_ids for i in range(first_id, len(sample.ids)))

    video = [sample.pixels], [sample.frame_seconds]
    ids = torch.tensor([[5, 6, *video_ids, 7, 8]])
    positions = base.position_ids(ids, ids != 0, *video)[:, 0]
    rows = positions[:, ids[0] == VIDEO_TOKEN_ID].view(3, 3, 3, 4)
    # After the text, a row moves on by its longer side, its marks and the stamp.
    stamp_length = len(stamps[0])
    first = 2 + stamp_length + 1
    starts = [first + i * (4 + 2 + stamp_length) for i in range(3)]
    assert rows[0, :, 0, 0].tolist() == starts
    assert rows[0, 1].unique().tolist() == [starts[1]]
    assert rows[1, 1, :, 0].tolist() == [starts[1] + i for i in range(3)]
    assert rows[2, 1, 0].tolist() == [starts[1] + i for i in range(4)]
    for length in (20, stamp_length + 3, 2 * (stamp_length + 14) + 1):
        cut = base.position_ids(ids[:, :length], ids[:, :length] != 0, *video)[:, 0]
        assert torch.equal(cut, positions[:, :length])
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], 1)
    assert torch.equal(base.position_ids(padded, padded != 0, *video)[:, 0, 3:], positions)


@torch.no_grad()
def test_patches_change_tokens_but_not_the_features_for_inner_layers(config: Config) -> None:
    model = make_trained(config)
    samples = make_samples(config, model.base, CASE.sizes)
    batch = make_batch(samples, model.base.tokenizer.pad_token_id)
    patched = model.fuse(batch["pixels"], batch["sides"], batch["frame_seconds"])
    unpatched = model.fuse(batch["pixels"], {}, batch["frame_seconds"])
    assert torch.equal(patched[..., WIDTH:], unpatched[..., WIDTH:])
    assert torch.equal(patched[0], unpatched[0])  # the first video has no sound
    assert not torch.allclose(patched[1, :, :WIDTH], unpatched[1, :, :WIDTH])


def test_prompt_is_the_chat_template(config: Config) -> None:
    base = build.load_base(config.base)
    [sample] = make_samples(config, base, CASE.sizes[:1], "a dog")
    rows = "".join(f"<{t} seconds><|vision_start|>{'<|video_pad|>' * 12}<|vision_end|>" for t in ("0.2", "1.2", "2.2"))
    text = f"<|im_start|>user\n{rows}what is heard?<|im_end|>\n<|im_start|>assistant\na dog<|im_end|>\n"
    tokens = base.tokenizer(text, add_special_tokens=False).input_ids
    assert sample.ids == [VIDEO_TOKEN_ID if token == base.hf.config.video_token_id else token for token in tokens]


@pytest.mark.parametrize("size", [(96, 128), (90, 131), (20, 300), (500, 640), (28, 28), (12, 40)])
def test_frames_are_as_large_as_the_processor_makes_them(config: Config, size: tuple[int, int]) -> None:
    """By the rule of the video processor in transformers, which needs a package that may not be installed."""
    base = build.load_base(config.base)
    frames, min_pixels, max_pixels = 6, 6 * 32 * 32 * 4, 6 * 32 * 32 * 12
    height, width = size
    if min(size) < 32:
        height, width = (int(x * 32 / min(size)) for x in size)
    high, wide = round(height / 32) * 32, round(width / 32) * 32
    if frames * high * wide > max_pixels:
        beta = math.sqrt(frames * height * width / max_pixels)
        high, wide = (max(32, math.floor(x / beta / 32) * 32) for x in (height, width))
    elif frames * high * wide < min_pixels:
        beta = math.sqrt(min_pixels / (frames * height * width))
        high, wide = (math.ceil(x * beta / 32) * 32 for x in (height, width))
    pixels = base.preprocess(np.full((6, *size, 3), 255, np.uint8))
    assert pixels.shape == (3, 6, high, wide)
    assert pixels.unique().tolist() == [1.0]


def test_profile_and_another_model(config: Config, tmp_path: Path) -> None:
    counts = profile.profile(config, {"audio": Shape(7, 1)})
    assert counts.visual_tokens == 3 * 12
    assert counts.rows["vision tower"].gflop > 0
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl"}))
    with pytest.raises(UserError, match="model_type is qwen2_5_vl, expected qwen3_vl"):
        qwen3_vl.Base.load(str(tmp_path))


def test_all_commands(config: Config, tiny_setup: TinySetup, tmp_path: Path) -> None:
    train.main(tiny_run_config(config, tiny_setup), tmp_path)
    trained, _ = build.load(tmp_path / "final", [])
    assert set(lora.names(trained.base.hf)) == {lora.DEFAULT}
    final = str(tmp_path / "final")
    assert main(["eval", "--ckpt", final, "--out", str(tmp_path / "eval"), "--max-new-tokens", "2"]) == 0
    video, sound = tiny_setup.data / "videos/test_00000.mp4", tiny_setup.data / "features/audio/test_00000.safetensors"
    question = ["--ckpt", final, "--video", str(video), "--ask", "what?", "--features", f"audio={sound}"]
    assert main(["demo", *question, "--max-new-tokens", "2"]) == 0
    assert main(["explain", *question, "--answer", "dog", "--out", str(tmp_path / "explained")]) == 0
