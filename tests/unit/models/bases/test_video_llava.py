"""Video-LLaVA, the port and as published: the same numbers as transformers and the tower; prompts, pixels, errors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.base_runs import CASES, compute_logits, make_batch, make_samples
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import CLIPImageProcessorPil, LlamaForCausalLM, VideoLlavaForConditionalGeneration

from pave.checkpoints import build
from pave.config import Config
from pave.models.bases import video_llava
from pave.models.encoders import languagebind_video
from pave.models.patched_model import PatchedModel
from pave.types import VIDEO_TOKEN_ID, UserError

PORT, ORIGINAL = CASES["video_llava port"], CASES["video_llava original"]


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return PORT.config(PORT.make(tmp_path_factory.mktemp("port")))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return ORIGINAL.config(ORIGINAL.make(tmp_path_factory.mktemp("original")))


@torch.no_grad()
def test_port_gives_the_logits_of_the_transformers_class(port: Config) -> None:
    base = build.load_base(port.base)
    batch = make_batch(make_samples(port, base, PORT.sizes), base.tokenizer.pad_token_id)
    hf = VideoLlavaForConditionalGeneration.from_pretrained(port.base.path).eval()
    ids = torch.where(batch["ids"] == VIDEO_TOKEN_ID, hf.config.video_token_id, batch["ids"])
    expected = hf(input_ids=ids, attention_mask=batch["mask"], pixel_values_videos=batch["pixels"]).logits
    assert torch.equal(compute_logits(PatchedModel(base, {}), batch), expected)


@torch.no_grad()
def test_original_is_tower_projector_and_llama(original: Config) -> None:
    folder = Path(original.base.path)
    base = build.load_base(original.base)
    batch = make_batch(make_samples(original, base, ORIGINAL.sizes), base.tokenizer.pad_token_id)
    state = load_file(folder / "model.safetensors")
    expected_query = languagebind_video.load(folder)(batch["pixels"])
    first, second = ([state[f"model.mm_projector.{i}.{n}"] for n in ("weight", "bias")] for i in (0, 2))
    expected_embeds = F.linear(F.gelu(F.linear(expected_query, *first)), *second)
    query, embeds = base.encode(batch["pixels"])
    assert torch.equal(query, expected_query)
    assert torch.equal(embeds, expected_embeds)
    assert not torch.equal(base.encode(batch["pixels"].flip(1)).query.flip(1), query)  # the order of frames matters

    llm = LlamaForCausalLM(base.hf.config).eval()
    llm.load_state_dict({name: x for name, x in state.items() if name in llm.state_dict()})
    inputs = llm.get_input_embeddings()(batch["ids"].clamp(min=0))
    inputs[batch["ids"] == VIDEO_TOKEN_ID] = expected_embeds.flatten(0, 2)
    expected = llm(inputs_embeds=inputs, attention_mask=batch["mask"]).logits
    assert torch.equal(compute_logits(PatchedModel(base, {}), batch), expected)


def test_prompt_is_that_of_the_published_code(original: Config, port: Config) -> None:
    history = (("what is heard?", "a dog"),)
    system = "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
    system += "detailed, and polite answers to the human's questions."
    before, after = f"{system} USER: ", "\nwhat is heard? ASSISTANT: a dog</s>USER: and a human? ASSISTANT:"
    base = build.load_base(original.base)
    pieces = [base.tokenizer(part, add_special_tokens=False).input_ids for part in (before, after)]
    assert base.chat("and a human?", history).ids == [1, *pieces[0], VIDEO_TOKEN_ID, *pieces[1]]
    assert base.tokenizer.pad_token_id == base.tokenizer.unk_token_id == 0

    base = build.load_base(port.base)
    tokens = base.tokenizer(f"<s>{before}<video>{after} barks</s>", add_special_tokens=False).input_ids
    tag = base.tokenizer.convert_tokens_to_ids("<video>")
    expected = [VIDEO_TOKEN_ID if token == tag else token for token in tokens]
    assert base.chat("and a human?", history, "barks").ids == expected


@pytest.mark.parametrize("size", [(40, 30), (30, 41), (28, 28), (61, 97)])
def test_port_pixels_are_those_of_the_processor(port: Config, size: tuple[int, int]) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    expected = processor([*frames], return_tensors="pt")["pixel_values"]
    assert torch.allclose(build.load_base(port.base).preprocess(frames), expected, atol=1e-6, rtol=0)


def test_original_pixels_are_those_of_the_encoder(original: Config) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 40, 61, 3), np.uint8)
    expected = torch.stack([languagebind_video.normalized_frame(frame, 28) for frame in frames])
    assert torch.equal(build.load_base(original.base).preprocess(frames), expected)


def test_counts_and_folders_that_do_not_fit(original: Config, port: Config, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this tower sees 8 frames at once"):
        build.load_base(original.base).num_visual_tokens(12)
    with pytest.raises(UserError, match="320 visual tokens, the LLM has 256 positions; set base"):
        build.load_base(port.base).num_visual_tokens(64)
    for path in (video_llava.PORT, video_llava.ORIGINAL):
        skeleton = video_llava.Base.load(path, weights=False)
        assert (skeleton.num_visual_tokens(8), skeleton.query_dim) == (2056, 1024)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"}))
    with pytest.raises(UserError, match="has no mm_video_tower"):
        video_llava.Base.load(str(tmp_path))
