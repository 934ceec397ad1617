"""Video-Panda as a base: the public class's tokens and a Llama's logits, frames of two shapes, errors."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.base_runs import CASES, compute_logits, make_batch, make_samples
from helpers.media_files import write_clip
from helpers.panda_folder import FRAMES, GOLDENS, SIZE
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import LlamaForCausalLM

from pave.checkpoints import build
from pave.config import Config
from pave.data.dataset import select_frame_sampling
from pave.media.video import read_clip
from pave.models.bases import video_panda
from pave.models.patched_model import PatchedModel
from pave.types import VIDEO_TOKEN_ID, UserError

CASE = CASES["video_panda"]
FRAMES_OF_GOLDEN = np.load(GOLDENS / "preprocess.npz")["square_60x60/source"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return CASE.config(CASE.make(tmp_path_factory.mktemp("panda")))


def test_frames_by_the_published_rule(config: Config, tmp_path: Path) -> None:
    """One a second of 60 at 25 a second are three, so there are 8 at steps of 8; in a process of its own, too."""
    base = build.load_base(config.base)
    sampling = select_frame_sampling(dataclasses.replace(config.base, frame_sampling="native"), base)
    path = write_clip(tmp_path / "a.mp4")
    for rule in (sampling, pickle.loads(pickle.dumps(sampling))):
        np.testing.assert_allclose(read_clip(path, rule).seconds, np.arange(8) * 8 / 25)
    assert len(read_clip(path, select_frame_sampling(config.base, base)).seconds) == FRAMES


@torch.no_grad()
def test_tokens_are_those_of_the_public_class(config: Config) -> None:
    base, goldens = build.load_base(config.base), np.load(GOLDENS / "tower.npz")
    query, embeds = base.encode(base.preprocess(FRAMES_OF_GOLDEN)[None])
    count = CASE.visual_tokens[0]
    for actual, name, step in ((query, "tokens", 5), (embeds, "projected", 8)):
        expected = torch.from_numpy(goldens[f"square_60x60/{name}"])[: len(range(0, count, step))]
        assert_close(actual[0].flatten(0, 1)[::step], expected, atol=5e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("sizes", [CASE.sizes[:1] * 2, CASE.sizes], ids=["one size", "two sizes"])
def test_logits_are_those_of_the_llama(config: Config, sizes: tuple[tuple[int, int], ...]) -> None:
    base = build.load_base(config.base)
    batch = make_batch(make_samples(config, base, sizes), base.tokenizer.pad_token_id)
    llm = LlamaForCausalLM(base.hf.config).eval()
    state = load_file(Path(config.base.path) / "model.safetensors")
    llm.load_state_dict({name: x for name, x in state.items() if name in llm.state_dict()})
    inputs = llm.get_input_embeddings()(batch["ids"].clamp(min=0))
    for row, pixels in enumerate(batch["pixels"]):
        inputs[row, batch["ids"][row] == VIDEO_TOKEN_ID] = base.encode(pixels[None]).embeds[0].flatten(0, 1)
    expected = llm(inputs_embeds=inputs, attention_mask=batch["mask"]).logits
    actual = compute_logits(PatchedModel(base, {}), batch)
    if isinstance(batch["pixels"], list):
        assert torch.equal(actual, expected)
    else:  # encoded in one batch here, one by one for the Llama
        assert_close(actual, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_training_mode_leaves_a_frozen_tower_as_it_is(config: Config) -> None:
    base = build.load_base(config.base)
    before = {name: x.clone() for name, x in base.vision_tower.state_dict().items()}
    pixels = base.preprocess(FRAMES_OF_GOLDEN)[None]
    expected = base.encode(pixels).query
    assert torch.equal(base.train().encode(pixels).query, expected)  # no dropout
    assert base.hf.training
    assert all(torch.equal(x, before[name]) for name, x in base.vision_tower.state_dict().items())  # no new statistics


def test_prompt_is_that_of_the_published_code(config: Config) -> None:
    base = build.load_base(config.base)
    system = "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
    system += "detailed, and polite answers to the human's questions."
    texts = (f"{system} USER: ", "\nwhat is heard? ASSISTANT: a dog</s>USER: and a human? ASSISTANT:")
    before, after = (base.tokenizer(text, add_special_tokens=False).input_ids for text in texts)
    assert base.chat("and a human?", (("what is heard?", "a dog"),)).ids == [1, *before, VIDEO_TOKEN_ID, *after]


def test_counts_and_folders_that_do_not_fit(config: Config, tmp_path: Path) -> None:
    base = build.load_base(config.base)
    for frames, size, message in (
        (6, (SIZE, SIZE), "sees 4 frames at once; set base.frames=8"),
        (32, (SIZE, SIZE), "672 visual tokens, the LLM has 512 positions; set base.frames=8"),
        (8, (21, 144), "stored video tokens do not tell"),
    ):
        with pytest.raises(UserError, match=message):
            base.num_visual_tokens(frames, size)
    for config_json in ({}, {"video_hidden_size": 64, "mm_use_im_start_end": True}):
        (tmp_path / "config.json").write_text(json.dumps(config_json))
        with pytest.raises(UserError, match="expected a Video-Panda checkpoint"):
            video_panda.Base.load(str(tmp_path))


def test_tokens_of_the_published_size() -> None:
    base = video_panda.Base.load(video_panda.PUBLISHED, weights=False)
    assert [base.num_visual_tokens(8, size) for size in ((448, 448), (252, 448))] == [8 * 273, 8 * 154]
    frames = np.zeros((8, 1080, 1920, 3), np.uint8)
    query, embeds = base.encode(torch.empty_like(base.preprocess(frames)[None], device="meta"))
    assert (query.shape, embeds.shape) == ((1, 8, 154, 1024), (1, 8, 154, 4096))
