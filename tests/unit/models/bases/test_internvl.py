"""InternVL: the same numbers as transformers, with a heading before each frame; pixels, prompts, stored tokens."""

from __future__ import annotations

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
from PIL import Image
from torch import Tensor
from transformers import InternVLForConditionalGeneration, PreTrainedModel

from pave.analysis import profile
from pave.analysis.op_counter import Shape
from pave.checkpoints import build
from pave.cli.main import main
from pave.config import Config
from pave.data.collate import Sample, collate
from pave.models.bases import internvl
from pave.models.patched_model import PatchedModel
from pave.training import train
from pave.types import VIDEO_TOKEN_ID, UserError

CASE = CASES["internvl"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return CASE.config(CASE.make(tmp_path_factory.mktemp("internvl")))


def transformers_inputs(hf: PreTrainedModel, samples: list[Sample], left: bool = False) -> dict[str, Tensor]:
    """What the processor of transformers gives for these samples."""
    batch = collate(samples, hf.generation_config.pad_token_id, left)
    return {
        "input_ids": torch.where(batch["ids"] == VIDEO_TOKEN_ID, hf.config.image_token_id, batch["ids"]),
        "attention_mask": batch["mask"].long(),
        "pixel_values": torch.cat([s.pixels for s in samples if s.pixels is not None]),
    }


@pytest.mark.parametrize("frames", [1, 4, 11])
@torch.no_grad()
def test_logits_and_answers_are_those_of_the_transformers_class(config: Config, frames: int) -> None:
    config = with_frames(config, frames)
    model = PatchedModel(build.load_base(config.base), {})
    hf = InternVLForConditionalGeneration.from_pretrained(config.base.path).eval()
    samples, pad_id = make_samples(config, model.base, CASE.sizes), model.base.tokenizer.pad_token_id
    batch = make_batch(samples, pad_id)
    valid = batch["mask"]
    expected = hf(**transformers_inputs(hf, samples)).logits
    assert torch.equal(compute_logits(model, batch)[valid], expected[valid])
    logits = model(**{**with_all_labels(batch), "sides": {}})["logits"]
    assert torch.equal(logits, expected[:, :-1][valid[:, 1:]])

    questions = make_samples(config, model.base, CASE.sizes, answer=None)
    inputs = transformers_inputs(hf, questions, left=True)
    answers = hf.generate(**inputs, max_new_tokens=6, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    assert torch.equal(model.generate(**make_batch(questions, pad_id, left=True), max_new_tokens=6), answers)


def test_prompt_is_the_processors(config: Config) -> None:
    base = build.load_base(config.base)
    [sample] = make_samples(config, base, CASE.sizes[:1], "a dog")
    frames = "\n".join(f"Frame{i + 1}: <img>{'<IMG_CONTEXT>' * 4}</img>" for i in range(4))
    text = f"<|im_start|>user\n{frames}\nwhat is heard?<|im_end|>\n<|im_start|>assistant\na dog<|im_end|>\n"
    tokens = base.tokenizer(text, add_special_tokens=False).input_ids
    assert sample.ids == [VIDEO_TOKEN_ID if token == base.hf.config.image_token_id else token for token in tokens]


def test_pixels_and_tokens(config: Config) -> None:
    base = build.load_base(config.base)
    frame = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    pixels = base.preprocess(frame[None])
    resized = np.asarray(Image.fromarray(frame).resize((56, 56), Image.Resampling.BICUBIC)) / 255
    expected = (resized - np.array([0.4, 0.5, 0.6])) / np.array([0.2, 0.25, 0.3])
    assert np.allclose(pixels[0].permute(1, 2, 0).numpy(), expected, atol=1e-5)

    query, embeds = base.encode(pixels[None])
    assert (query.shape, embeds.shape) == ((1, 1, 4, 64), (1, 1, 4, 48))
    assert torch.equal(base.multi_modal_projector(query), embeds)
    # A token holds four neighbours: of 4 x 4 patches the first has those at the upper left.
    patches = base.vision_tower(pixel_values=pixels).last_hidden_state[0, 1:].view(4, 4, 16)
    assert sorted(patches[:2, :2].reshape(-1, 16).tolist()) == sorted(query[0, 0, 0].view(4, 16).tolist())


def test_profile_and_published_size(config: Config) -> None:
    counts = profile.profile(config, {"audio": Shape(7, 1)})
    assert counts.visual_tokens == 4 * 4
    assert counts.rows["projector"].gflop == pytest.approx(2 * 16 * (64 * 48 + 48 * 48) / 1e9)
    skeleton = internvl.Base.load("OpenGVLab/InternVL3-1B-hf", weights=False)
    assert (skeleton.num_visual_tokens(8), skeleton.query_dim) == (8 * 256, 4096)


def test_folders_of_another_layout_are_refused(tmp_path: Path) -> None:
    for config_json, message in (
        ({"model_type": "internvl_chat"}, "model_type is internvl_chat, expected internvl; .* ends in -hf"),
        ({"model_type": "internvl", "vision_feature_layer": -2}, "vision_feature_layer is -2, expected -1"),
        ({}, "model_type is None, expected internvl"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config_json))
        with pytest.raises(UserError, match=message):
            internvl.Base.load(str(tmp_path))


def test_all_commands_also_with_stored_tokens(config: Config, tiny_setup: TinySetup, tmp_path: Path) -> None:
    train.main(tiny_run_config(config, tiny_setup), tmp_path)
    final = str(tmp_path / "final")
    video, sound = tiny_setup.data / "videos/test_00000.mp4", tiny_setup.data / "features/audio/test_00000.safetensors"
    question = ["--ckpt", final, "--video", str(video), "--ask", "what?", "--features", f"audio={sound}"]
    assert main(["demo", *question, "--max-new-tokens", "2"]) == 0
    assert main(["explain", *question, "--answer", "dog", "--out", str(tmp_path / "explained")]) == 0
    out = ["--max-new-tokens", "2", "--out"]
    assert main(["eval", "--ckpt", final, *out, str(tmp_path / "from_video")]) == 0

    store = ["--out", str(tiny_setup.data / "internvl/videos"), "--weights", config.base.path]
    settings = ["base=internvl", f"frames={config.base.frames}", "dtype=float32"]
    assert main(["extract", "video", "--videos", str(tiny_setup.data / "videos"), *store, *settings]) == 0
    stored = ["data.video_tokens=internvl", *out, str(tmp_path / "from_store")]
    assert main(["eval", "--ckpt", final, *stored]) == 0
    predictions = [(tmp_path / name / "predictions.jsonl").read_text() for name in ("from_video", "from_store")]
    assert predictions[0] == predictions[1]
