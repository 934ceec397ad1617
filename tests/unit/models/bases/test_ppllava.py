"""PPLLaVA as a base: towers, projector and a Llama together, questions that change what is seen, patches, errors."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_model
from helpers.tiny_bases import LAYERS, TOLD, llama_tokenizer, make_ppllava, randomise
from helpers.tiny_model import TinySetup
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close
from transformers import CLIPImageProcessorPil, LlamaForCausalLM

from pave.analysis import op_counter
from pave.checkpoints import build, patch_folder
from pave.config import BaseConfig, Config, DataConfig, LoraConfig, PatchConfig
from pave.data.collate import collate
from pave.data.dataset import make_sample
from pave.evaluation import evaluate
from pave.models import lora
from pave.models.base import LoadSettings
from pave.models.bases import ppllava
from pave.models.encoders import ppllava_projector as encoder
from pave.models.patched_model import PatchedModel
from pave.training import train
from pave.types import IGNORE_INDEX, VIDEO_TOKEN_ID, Clip, Images, SideTokens, UserError

FRAMES, PER_PAIR = 4, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_ppllava(tmp_path_factory.mktemp("ppllava"))


def make_config(folder: Path) -> Config:
    return Config(
        base=BaseConfig(name="ppllava", path=str(folder), frames=FRAMES, newline="no_token", dtype="float32"),
        sides={"audio": PatchConfig(side_dim=12, hidden_dim=16, side_hidden_dim=16)},
        lora=LoraConfig(r=2, alpha=4, dropout=0.0),
        data=DataConfig(max_length=256),
    )


def make_batch(config: Config, base: Any, said: str | None = "a dog barks") -> dict[str, Any]:
    """Two videos of noise, one with sound; the questions are of different length."""
    rng, samples = np.random.default_rng(0), []
    for i in range(2):
        clip = Clip(rng.integers(0, 256, (FRAMES, 40, 30, 3), np.uint8), np.arange(FRAMES) / 2)
        side = SideTokens(torch.randn(6, 1, 12, generator=torch.Generator().manual_seed(i))) if i else None
        samples.append(make_sample(config, base, f"what is heard{' a dog' * i}?", clip, {"audio": side}, answer=said))
    return collate(samples, base.tokenizer.pad_token_id, left=said is None)


@torch.no_grad()
def test_towers_projector_and_llama(folder: Path) -> None:
    config = make_config(folder)
    base = build.load_base(config.base)
    batch = make_batch(config, base)
    tower, projector = encoder.load(folder)
    seen = base.encode(batch["pixels"], batch["prompt_ids"])
    # Both videos at once, as `encode` sees them: alone they round otherwise, and 1 / .01 makes that large.
    tokens = tower(batch["pixels"].view(2, FRAMES, 3, 84, 84))
    weights = projector.relevance(tokens, projector.encode_prompt(batch["prompt_ids"])).view(2, FRAMES, 6, 6)
    for found, whole in ((seen.query, tokens), (seen.embeds, projector.project(tokens))):
        want = encoder.weighted_pool(whole.unflatten(2, (6, 6)), weights, (2, 3, 3))
        assert_close(found, want.flatten(2, 3), atol=1e-5, rtol=1e-5)
    assert seen.query.shape == (2, FRAMES // 2, PER_PAIR, 24)
    assert base.arrange_tokens(seen.embeds).shape[1] == base.num_visual_tokens(2, (84, 84)) == 2 * PER_PAIR
    state = load_file(folder / "model.safetensors")
    llm = LlamaForCausalLM(base.hf.config).eval()
    llm.load_state_dict({n.removeprefix("language_model."): x for n, x in state.items() if "language_model" in n})
    embeds = llm.get_input_embeddings()(batch["ids"].clamp(min=0))
    embeds[batch["ids"] == VIDEO_TOKEN_ID] = seen.embeds.flatten(0, 2)
    want = llm(inputs_embeds=embeds, attention_mask=batch["mask"]).logits
    ours = PatchedModel(base, {}).splice(batch["ids"], batch["pixels"], {}, prompt_ids=batch["prompt_ids"])
    assert torch.equal(base.lm_head(base.llm(inputs_embeds=ours, attention_mask=batch["mask"]).last_hidden_state), want)


@torch.no_grad()
def test_the_question_changes_what_is_seen_and_the_answer_never_does(folder: Path) -> None:
    config = make_config(folder)
    base = build.load_base(config.base)
    pixels = make_batch(config, base)["pixels"][:1]
    prompt_ids = [base.chat(question).prompt_ids for question in ("what is heard?", "a human and the dog")]
    assert prompt_ids[0] == [11, 1, 2, 3, 4, 12]
    one, other = (base.encode(pixels, torch.tensor([guide])).embeds for guide in prompt_ids)
    assert (one - other).abs().max() > 1e-3
    told = base.chat("what is heard?", (("a dog?", "barks"),), "a human")
    assert told.prompt_ids == prompt_ids[0]
    padded = torch.tensor([prompt_ids[0] + [0] * 9])
    # Rounding of the weights comes out a hundredfold: that is what the temperature is for.
    assert (base.encode(pixels, padded).embeds - one).abs().max() < 0.01 * (one - other).abs().max()
    assert len(base.chat("a dog " * 400).prompt_ids) == 248


def test_fresh_patch_changes_no_bit_and_only_patch_and_lora_learn(folder: Path) -> None:
    config = make_config(folder)
    model = build.create(config).eval()
    batch = make_batch(config, model.base)
    everywhere = {**batch, "labels": torch.where(batch["mask"], batch["ids"].clamp(min=0), IGNORE_INDEX)}
    with torch.no_grad():
        alone = PatchedModel(build.load_base(config.base), {})(**{**everywhere, "sides": {}})["logits"]
        assert torch.equal(model(**everywhere)["logits"], alone)
        randomise(model.patches.parameters())
        changed = model(**everywhere)["logits"]
    first = int(batch["mask"][0, 1:].sum())
    assert torch.equal(changed[:first], alone[:first])  # that sample has no sound
    assert not torch.allclose(changed[first:], alone[first:])
    model.train()(**make_batch(config, model.base))["loss"].backward()
    learns = {name for name, p in model.named_parameters() if p.grad is not None}
    assert {train.part_of(name) for name in learns} == {"patch audio", "LoRA"}
    assert len([n for n in learns if "lora_A" in n]) == 7 * LAYERS
    parts = {"patch audio", "LoRA", "vision tower", "projector", "LLM"}
    assert {train.part_of(n) for n, _ in model.named_parameters()} == parts


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
    assert not torch.equal(PatchedModel(model.base, {}).generate(**{**batch, "sides": {}}, max_new_tokens=6), wanted)


def test_it_trains_and_each_question_is_answered_with_its_own_view(
    folder: Path, tiny_setup: TinySetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = make_config(folder)
    config = dataclasses.replace(tiny_model.make_config(folder, tiny_setup.data, max_steps=2), base=ours.base)
    train.main(config, tmp_path / "run")
    trained, config = build.load(tmp_path / "run/final", [])
    before, after = build.create(config).patches.parameters(), trained.patches.parameters()
    assert any(not torch.equal(a, b) for a, b in zip(before, after))
    trained.eval()
    looks: list[list[int]] = []
    encode = trained.base.encode
    monkeypatch.setattr(
        trained.base, "encode", lambda x, prompt_ids: looks.extend(prompt_ids.tolist()) or encode(x, prompt_ids)
    )
    evaluate.main(trained, config, tmp_path / "out", evaluate.Options(max_new_tokens=4, batch=3))
    lines = (tmp_path / "out/predictions.jsonl").read_text().splitlines()
    said = {line["qid"]: line["text"] for line in map(json.loads, lines)}
    questions = evaluate.load_questions(trained, config, config.data.eval_split, {}, True)
    assert len({q.video for q in questions.questions}) < len(said) == len(questions) == len(looks)
    for i, question in enumerate(questions.questions):
        batch = collate([questions[i]], trained.base.tokenizer.pad_token_id, left=True)
        del batch["labels"]
        tokens = trained.generate(**batch, max_new_tokens=4)
        assert trained.base.tokenizer.decode(tokens[0], skip_special_tokens=True).strip() == said[question.qid]


def test_prompt(folder: Path) -> None:
    base = ppllava.Base.load(str(folder))
    text = "<s>USER: <image>\nwhat is heard? ASSISTANT: a dog</s>USER: and a human? ASSISTANT: barks</s>"
    tokens = base.tokenizer(text, add_special_tokens=False).input_ids
    mark = base.tokenizer.convert_tokens_to_ids("<image>")
    told = base.chat("and a human?", (("what is heard?", "a dog"),), "barks")
    assert told.ids == [VIDEO_TOKEN_ID if token == mark else token for token in tokens]
    learnt = base.tokenizer.convert_ids_to_tokens([label for label in told.labels if label != IGNORE_INDEX])
    assert "".join(learnt).replace("▁", " ") == " a dog</s> barks</s>"


def test_the_guide_has_an_answer_only_where_the_published_training_is_asked_for(folder: Path) -> None:
    base = ppllava.Base.load(str(folder))
    history = (("what is heard?", "a dog"),)
    question = base.prompt_tokenizer("and a human?").input_ids
    for mask, answer in (("answers", "barks"), ("answers", None), ("official", None)):
        assert base.chat("and a human?", history, answer, mask).prompt_ids == question
    whole = base.prompt_tokenizer("what is heard? a dog and a human? barks").input_ids
    assert base.chat("and a human?", history, "barks", "official").prompt_ids == whole


@torch.no_grad()
def test_pictures_are_pooled_alone(folder: Path) -> None:
    config = make_config(folder)
    base = build.load_base(config.base)
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (*size, 3), np.uint8) for size in ((40, 30), (84, 84), (20, 60))]
    sample = make_sample(config, base, "what is heard?", Images(pictures), {}, answer="a dog")
    assert sample.pixels is not None
    assert sample.pixels.shape == (3, 3, 84, 84)
    assert sample.ids.count(VIDEO_TOKEN_ID) == 3 * PER_PAIR
    assert torch.equal(base.preprocess(np.stack([pictures[1]] * 2))[0, :3], sample.pixels[1])
    guide = torch.tensor([sample.prompt_ids])
    seen = base.encode(sample.pixels[None], guide)
    tower, projector = encoder.load(folder)
    tokens = tower(sample.pixels[None])
    projected, weights = projector(tokens, guide)
    want = encoder.weighted_pool(projected.unflatten(2, (6, 6)), weights.unflatten(2, (6, 6)), (1, 3, 3))
    assert_close(seen.embeds, want.flatten(2, 3), atol=1e-5, rtol=1e-5)
    # With a video in one batch.
    clip = Clip(rng.integers(0, 256, (FRAMES, 40, 30, 3), np.uint8), np.arange(FRAMES) / 2)
    other = make_sample(config, base, "what is heard?", clip, {}, answer="a dog")
    assert PatchedModel(base, {})(**collate([sample, other], base.tokenizer.pad_token_id))["loss"].isfinite()
    with pytest.raises(UserError, match="the tower knows 8 moments"):
        base.preprocess_images([pictures[0]] * 9)


def test_what_learns_of_the_towers_is_the_branch(folder: Path) -> None:
    config = dataclasses.replace(make_config(folder), lora=LoraConfig(r=0))
    config = dataclasses.replace(config, base=dataclasses.replace(config.base, trainable=["tower", "projector", "llm"]))
    model = build.create(config)
    model(**make_batch(config, model.base))["loss"].backward()
    rest, learning = ({n for n, p in model.base.named_parameters() if p.requires_grad is x} for x in (False, True))
    assert all("btadapter" in name for name in learning if name.startswith("vision_tower."))
    assert any(name.startswith("vision_tower.btadapter_T") for name in learning)
    assert {n for n in learning if n.startswith("multi_modal_projector.")} == {
        f"multi_modal_projector.{name}"
        for name in [
            *(
                f"{linear}.{part}"
                for linear in ("linear_1", "linear_2", "clip_visual_ln")
                for part in ("weight", "bias")
            ),
            *("clip_visual_projection.weight", "clip_text_projection.weight"),
        ]
    }
    assert any(name.startswith("vision_tower.encoder.") for name in rest)
    silent = {n for n, p in model.base.named_parameters() if p.requires_grad and p.grad is None}
    assert not silent


def test_pixels_are_those_of_the_processor_with_aspect_ignored(folder: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 40, 61, 3), np.uint8)
    processor = CLIPImageProcessorPil(size={"height": 84, "width": 84}, do_center_crop=False)
    want = processor([*frames], return_tensors="pt")["pixel_values"]
    base = ppllava.Base.load(str(folder))
    assert_close(base.preprocess(frames), want.flatten(0, 1)[None], atol=1e-6, rtol=0)
    with pytest.raises(UserError, match=r"base\.frames=3: frames are pooled in pairs"):
        base.preprocess(np.zeros((3, 8, 8, 3), np.uint8))


def test_wrong_settings_and_folders_are_answered(folder: Path, tmp_path: Path) -> None:
    for settings, message in (({"newline": "grid"}, "base.newline=no_token"), ({"pool": "max"}, "base.pool=max")):
        with pytest.raises(UserError, match=message):
            ppllava.Base.load(str(folder), LoadSettings(**settings))
    base = ppllava.Base.load(str(folder))
    with pytest.raises(UserError, match=r"base\.frames=10: the tower knows 8 moments"):
        base.preprocess(np.zeros((10, 8, 8, 3), np.uint8))
    with pytest.raises(UserError, match=r"depend on the question; leave data\.video_tokens empty"):
        base.num_visual_tokens(2, (4, 56))
    told = json.loads((folder / "config.json").read_text())
    for wrong in ({"pooling": "avp"}, {"extend_clip": False}, {"pooling_kernel": [1, 3, 3]}):
        (tmp_path / "config.json").write_text(json.dumps({**told, **wrong}))
        with pytest.raises(UserError, match=f"{next(iter(wrong))} is .*give a PPLLaVA checkpoint"):
            ppllava.Base.load(str(tmp_path))


@pytest.mark.parametrize(
    ("gone", "added", "message"),
    [
        ("multi_modal_projector.linear_1.bias", {}, "missing, such as linear_1.bias"),
        ("language_model.model.layers.0.mlp.up_proj.weight", {}, "up_proj"),
        ("", {"language_model.extra": torch.zeros(1)}, "extra"),
        ("", {"vision_tower.vision_model.gain": torch.zeros(1)}, "unexpected, such as gain"),
    ],
)
def test_wrong_tensors_are_named(
    folder: Path, tmp_path: Path, gone: str, added: dict[str, Tensor], message: str
) -> None:
    for file in (f for f in folder.iterdir() if f.is_file()):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = {name: x for name, x in load_file(tmp_path / "model.safetensors").items() if name != gone}
    save_file({**state, **added}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=message) as caught:
        ppllava.Base.load(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_missing_tokenizers_are_named(folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "generation_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(UserError, match="no tokenizer in it; copy those files"):
        ppllava.Base.load(str(tmp_path))
    llama_tokenizer(video=False).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="its tokenizer has no <image>"):
        ppllava.Base.load(str(tmp_path))


def test_published_size(tmp_path: Path) -> None:
    vision = {"hidden_size": 1024, "image_size": 336, "patch_size": 14, "projection_dim": 768}
    text = {"max_position_embeddings": 4096, "vocab_size": 32064}
    told = {**TOLD, "vision_config": vision, "text_config": text, "btadapter_depth": 4, "max_T": 64}
    (tmp_path / "config.json").write_text(json.dumps(told))
    base = ppllava.Base.load(str(tmp_path), weights=False)
    assert [base.num_visual_tokens(frames // 2, (336, 336)) for frames in (32, 64)] == [1024, 2048]
    pixels = torch.empty_like(base.preprocess(np.zeros((2, 8, 8, 3), np.uint8))[None], device="meta")
    seen = base.encode(pixels, torch.zeros(1, 9, dtype=torch.long, device="meta"))
    assert (seen.query.shape, seen.embeds.shape) == ((1, 1, 64, 1024), (1, 1, 64, 4096))
    assert (base.query_dim, base.embed_dim) == (1024, 4096)
    work, projector, _ = op_counter.count_vision(PatchedModel(base, {}), 2)
    assert 0 < projector < work.flops
    assert sum(p.numel() for p in base.hf.parameters()) == 6_738_415_616 + 2 * 4096 * 64
