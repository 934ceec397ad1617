"""Video-LLaVA, the port and as published: the same numbers as transformers and the tower, patches, prompts, errors."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_model
from helpers.tiny_bases import LAYERS, make_original, make_port, randomise
from helpers.tiny_model import TinySetup
from safetensors.torch import load_file
from torch import nn
from transformers import (
    CLIPImageProcessorPil,
    LlamaForCausalLM,
    VideoLlavaForConditionalGeneration,
)

from pave.checkpoints import build, patch_folder
from pave.config import BaseConfig, Config, DataConfig, LoraConfig, PatchConfig
from pave.data.collate import collate
from pave.data.dataset import make_sample
from pave.inference import generation
from pave.models import lora
from pave.models.bases import video_llava
from pave.models.encoders import languagebind_video
from pave.models.patched_model import Pave
from pave.training import train
from pave.types import IGNORE, VIDEO, Clip, SideTokens, UserError

FRAMES, PER_FRAME = 8, 5


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_port(tmp_path_factory.mktemp("port"))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_original(tmp_path_factory.mktemp("original"))


@pytest.fixture(params=["port", "original"])
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def make_config(folder: Path) -> Config:
    return Config(
        base=BaseConfig(name="video_llava", path=str(folder), frames=FRAMES, newline="no_token", dtype="float32"),
        sides={"audio": PatchConfig(side_dim=12, hidden_dim=16, side_hidden_dim=16)},
        lora=LoraConfig(r=2, alpha=4, dropout=0.0),
        data=DataConfig(max_length=256),
    )


def make_batch(config: Config, base: Any, said: str | None = "a dog barks") -> dict[str, Any]:
    """Two videos of noise, one with sound."""
    rng = np.random.default_rng(0)
    samples = []
    for i in range(2):
        clip = Clip(rng.integers(0, 256, (FRAMES, 40, 30, 3), np.uint8), np.arange(FRAMES) / 2)
        side = SideTokens(torch.randn(6, 1, 12, generator=torch.Generator().manual_seed(i))) if i else None
        samples.append(make_sample(config, base, f"what is heard{' a' * i}?", clip, {"audio": side}, answer=said))
    return collate(samples, base.tokenizer.pad_token_id, left=said is None)


def everywhere(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch with a label at every place but the first, so that all logits come out."""
    return {**batch, "labels": torch.where(batch["mask"], batch["ids"].clamp(min=0), IGNORE)}


@torch.no_grad()
def test_port_gives_the_logits_of_the_transformers_class(port: Path) -> None:
    config = make_config(port)
    base = build.load_base(config.base)
    batch = make_batch(config, base)
    hf = VideoLlavaForConditionalGeneration.from_pretrained(port).eval()
    ids = torch.where(batch["ids"] == VIDEO, hf.config.video_token_id, batch["ids"])
    assert (ids == hf.config.video_token_id).sum(1).tolist() == [FRAMES * PER_FRAME] * 2
    want = hf(input_ids=ids, attention_mask=batch["mask"], pixel_values_videos=batch["pixels"]).logits
    embeds = Pave(base, {}).splice(batch["ids"], batch["pixels"], {})
    ours = base.head(base.lm(inputs_embeds=embeds, attention_mask=batch["mask"]).last_hidden_state)
    assert torch.equal(ours, want)
    seen = base.encode(batch["pixels"])
    assert seen.query.shape == (2, FRAMES, PER_FRAME, 16)
    assert seen.embeds.shape == (2, FRAMES, PER_FRAME, 32)
    assert base.layout(seen.embeds).shape[1] == base.visual_tokens(FRAMES)


@torch.no_grad()
def test_original_is_tower_projector_and_llama(original: Path) -> None:
    config = make_config(original)
    base = build.load_base(config.base)
    batch = make_batch(config, base)
    tower, state = languagebind_video.load(original), load_file(original / "model.safetensors")
    query = tower(batch["pixels"])
    first, second = ([state[f"model.mm_projector.{i}.{n}"] for n in ("weight", "bias")] for i in (0, 2))
    linear = nn.functional.linear
    visual = linear(nn.functional.gelu(linear(query, *first)), *second)
    seen = base.encode(batch["pixels"])
    assert torch.equal(seen.query, query)
    assert torch.equal(seen.embeds, visual)
    assert not torch.equal(base.encode(batch["pixels"].flip(1)).query.flip(1), query)  # the order of frames matters
    llm = LlamaForCausalLM(base.hf.config).eval()
    llm.load_state_dict({name: x for name, x in state.items() if name in llm.state_dict()})
    embeds = llm.get_input_embeddings()(batch["ids"].clamp(min=0))
    embeds[batch["ids"] == VIDEO] = visual.flatten(0, 2)
    want = llm(inputs_embeds=embeds, attention_mask=batch["mask"]).logits
    ours = Pave(base, {}).splice(batch["ids"], batch["pixels"], {})
    assert torch.equal(base.head(base.lm(inputs_embeds=ours, attention_mask=batch["mask"]).last_hidden_state), want)


def test_fresh_patch_changes_no_bit_and_only_patch_and_lora_learn(folder: Path) -> None:
    config = make_config(folder)
    model = build.create(config).eval()
    batch = everywhere(make_batch(config, model.base))
    with torch.no_grad():
        alone = Pave(build.load_base(config.base), {})(**{**batch, "sides": {}})["logits"]
        assert torch.equal(model(**batch)["logits"], alone)
        randomise(model.patches.parameters())
        changed = model(**batch)["logits"]
    rows = batch["mask"][:, 1:].sum(1)
    assert torch.equal(changed[: rows[0]], alone[: rows[0]])  # that sample has no sound
    assert not torch.allclose(changed[rows[0] :], alone[rows[0] :])
    model.train()(**make_batch(config, model.base))["loss"].backward()
    learns = {name for name, p in model.named_parameters() if p.grad is not None}
    assert {train.part_of(name) for name in learns} == {"patch audio", "LoRA"}
    assert len([n for n in learns if "lora_A" in n]) == 7 * LAYERS
    assert {train.part_of(n) for n, _ in model.named_parameters()} == {
        *("patch audio", "LoRA", "vision tower", "projector", "LLM")
    }


def test_answers_and_a_saved_folder(folder: Path, tmp_path: Path) -> None:
    config = make_config(folder)
    model = build.create(config).eval()
    randomise([*model.patches.parameters(), *lora.state(model.base.hf).values()])
    batch = make_batch(config, model.base, said=None)
    del batch["labels"]
    wanted = model.generate(**batch, max_new_tokens=6)
    assert wanted.shape == (2, 6)
    patch_folder.save(model, config, tmp_path / "patch")
    again, _ = build.load(tmp_path / "patch", [])
    assert torch.equal(again.eval().generate(**batch, max_new_tokens=6), wanted)
    assert not torch.equal(Pave(model.base, {}).generate(**{**batch, "sides": {}}, max_new_tokens=6), wanted)


def test_shared_beginnings_give_the_same_answers(folder: Path) -> None:
    config = make_config(folder)
    model = build.create(config).eval()
    randomise(model.patches.parameters())
    clip = Clip(np.random.default_rng(3).integers(0, 256, (FRAMES, 28, 50, 3), np.uint8), np.arange(FRAMES) / 2)
    side = {"audio": SideTokens(torch.randn(4, 1, 12))}
    samples = [make_sample(config, model.base, f"what is {w}?", clip, side) for w in ("heard", "a dog", "human and a")]
    asked = generation.Asked(samples[0], [s.ids for s in samples])
    how = generation.decoding(model, 5)
    found = generation.answers(model, [asked], how, 3)[0]
    for sample, tokens in zip(samples, found):
        batch = collate([sample], 0, left=True)
        del batch["labels"]
        assert tokens == generation._until_end(model.generate(**batch, max_new_tokens=5)[0].tolist(), how.end)


def test_it_trains(folder: Path, tiny_setup: TinySetup, tmp_path: Path) -> None:
    ours = make_config(folder)
    config = dataclasses.replace(tiny_model.make_config(folder, tiny_setup.data, max_steps=2), base=ours.base)
    train.main(config, tmp_path)
    trained, _ = build.load(tmp_path / "final", [])
    before, after = build.create(config).patches.parameters(), trained.patches.parameters()
    assert any(not torch.equal(a, b) for a, b in zip(before, after))


def test_prompt_is_that_of_the_published_code(original: Path, port: Path) -> None:
    history = (("what is heard?", "a dog"),)
    system = "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
    system += "detailed, and polite answers to the human's questions."
    before, after = f"{system} USER: ", "\nwhat is heard? ASSISTANT: a dog</s>USER: and a human? ASSISTANT:"
    base = video_llava.load(str(original))
    pieces = [base.tokenizer(part, add_special_tokens=False).input_ids for part in (before, after)]
    open_end = base.chat("and a human?", history)
    assert open_end.ids == [1, *pieces[0], VIDEO, *pieces[1]]
    assert base.tokenizer.pad_token_id == base.tokenizer.unk_token_id == 0

    base = video_llava.load(str(port))
    tokens = base.tokenizer(f"<s>{before}<video>{after} barks</s>", add_special_tokens=False).input_ids
    tag = base.tokenizer.convert_tokens_to_ids("<video>")
    closed = base.chat("and a human?", history, "barks")
    assert closed.ids == [VIDEO if token == tag else token for token in tokens]


def test_labels_are_the_answers_and_their_ends(folder: Path) -> None:
    base = video_llava.load(str(folder))
    encoded = base.chat("and a human?", (("what is heard?", "a dog"),), "barks\nand is heard")
    assert len(encoded.ids) == len(encoded.labels)
    assert all(label in (IGNORE, token) for token, label in zip(encoded.ids, encoded.labels))
    learnt = [label for label in encoded.labels if label != IGNORE]
    text = "".join(base.tokenizer.convert_ids_to_tokens(learnt)).replace("▁", " ").replace("<0x0A>", "\n")
    assert text == " a dog</s> barks\nand is heard</s>"
    assert set(base.chat("what is heard?").labels) == {IGNORE}
    with pytest.raises(UserError, match="is for LLaVA-OneVision"):
        base.chat("what is heard?", (), "a dog", "official")


@pytest.mark.parametrize("size", [(40, 30), (30, 41), (28, 28), (61, 97)])
def test_port_pixels_are_those_of_the_processor(port: Path, size: tuple[int, int]) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    want = processor([*frames], return_tensors="pt")["pixel_values"]
    assert torch.allclose(video_llava.load(str(port)).preprocess(frames), want, atol=1e-6, rtol=0)


def test_original_pixels_are_those_of_the_encoder(original: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 40, 61, 3), np.uint8)
    want = torch.stack([languagebind_video.pixels(frame, 28) for frame in frames])
    assert torch.equal(video_llava.load(str(original)).preprocess(frames), want)
