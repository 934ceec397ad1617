"""PPLLaVA as a base: towers, projector and a Llama together, questions that change visual tokens, images, errors."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.base_runs import CASES, compute_logits, make_batch, make_samples, tiny_run_config
from helpers.tiny_bases import PPLLAVA_CONFIG, llama_tokenizer
from helpers.tiny_model import TinySetup
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import CLIPImageProcessorPil, LlamaForCausalLM

from pave.analysis import op_counter
from pave.checkpoints import build
from pave.config import Config, LoraConfig
from pave.data.collate import collate
from pave.data.dataset import make_sample
from pave.evaluation import evaluate
from pave.models.bases import ppllava
from pave.models.encoders import ppllava_projector as encoder
from pave.models.patched_model import PatchedModel
from pave.training import train
from pave.types import VIDEO_TOKEN_ID, Clip, Images, UserError

CASE = CASES["ppllava"]
FRAMES, TOKENS_PER_PAIR = CASE.frames, 4
HISTORY = (("what is heard?", "a dog"),)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return CASE.config(CASE.make(tmp_path_factory.mktemp("ppllava")))


@torch.no_grad()
def test_towers_projector_and_llama(config: Config) -> None:
    base = build.load_base(config.base)
    batch = make_batch(make_samples(config, base, CASE.sizes), base.tokenizer.pad_token_id)
    tower, projector = encoder.load(Path(config.base.path))
    query, embeds = base.encode(batch["pixels"], batch["prompt_ids"])
    # Both videos at once, as `encode` sees them: alone they round otherwise, and 1 / .01 makes that large.
    tokens = tower(batch["pixels"].view(2, FRAMES, 3, 84, 84))
    projected, weights = projector(tokens, batch["prompt_ids"])
    for actual, unpooled in ((query, tokens), (embeds, projected)):
        expected = encoder.weighted_pool(unpooled.unflatten(2, (6, 6)), weights.unflatten(2, (6, 6)), (2, 3, 3))
        assert_close(actual, expected.flatten(2, 3), atol=1e-5, rtol=1e-5)
    assert query.shape == (2, FRAMES // 2, TOKENS_PER_PAIR, 24)

    state = load_file(Path(config.base.path) / "model.safetensors")
    llm = LlamaForCausalLM(base.hf.config).eval()
    llm.load_state_dict({n.removeprefix("language_model."): x for n, x in state.items() if "language_model" in n})
    inputs = llm.get_input_embeddings()(batch["ids"].clamp(min=0))
    inputs[batch["ids"] == VIDEO_TOKEN_ID] = embeds.flatten(0, 2)
    expected = llm(inputs_embeds=inputs, attention_mask=batch["mask"]).logits
    assert torch.equal(compute_logits(PatchedModel(base, {}), batch), expected)


@torch.no_grad()
def test_the_question_changes_visual_tokens_and_the_answer_never_does(config: Config) -> None:
    base = build.load_base(config.base)
    pixels = make_samples(config, base, CASE.sizes)[0].pixels[None]
    prompt_ids = [base.chat(question).prompt_ids for question in ("what is heard?", "a human and the dog")]
    assert prompt_ids[0] == [11, 1, 2, 3, 4, 12]
    first, second = (base.encode(pixels, torch.tensor([ids])).embeds for ids in prompt_ids)
    difference = (first - second).abs().max()
    assert difference > 1e-3
    assert base.chat("what is heard?", (("a dog?", "barks"),), "a human").prompt_ids == prompt_ids[0]
    padded = base.encode(pixels, torch.tensor([prompt_ids[0] + [0] * 9])).embeds
    # Rounding of the weights comes out a hundredfold: that is what the temperature is for.
    assert (padded - first).abs().max() < 0.01 * difference
    assert len(base.chat("a dog " * 400).prompt_ids) == 248


def test_each_question_is_answered_from_visual_tokens_of_its_own(
    config: Config, tiny_setup: TinySetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train.main(tiny_run_config(config, tiny_setup), tmp_path / "run")
    trained, config = build.load(tmp_path / "run/final", [])
    trained.eval()
    encoded_prompts: list[list[int]] = []
    encode = trained.base.encode
    monkeypatch.setattr(
        trained.base, "encode", lambda pixels, ids: encoded_prompts.extend(ids.tolist()) or encode(pixels, ids)
    )
    evaluate.main(trained, config, tmp_path / "out", evaluate.Options(max_new_tokens=4, batch=3))
    lines = (tmp_path / "out/predictions.jsonl").read_text().splitlines()
    answers = {record["qid"]: record["text"] for record in map(json.loads, lines)}
    questions = evaluate.load_questions(trained, config, config.data.eval_split, {}, True)
    assert len({q.video for q in questions.questions}) < len(answers) == len(questions) == len(encoded_prompts)
    for i, question in enumerate(questions.questions):
        batch = make_batch([questions[i]], trained.base.tokenizer.pad_token_id, left=True)
        tokens = trained.generate(**batch, max_new_tokens=4)
        assert trained.base.tokenizer.decode(tokens[0], skip_special_tokens=True).strip() == answers[question.qid]


def test_prompt(config: Config) -> None:
    base = build.load_base(config.base)
    text = "<s>USER: <image>\nwhat is heard? ASSISTANT: a dog</s>USER: and a human? ASSISTANT: barks</s>"
    tokens = base.tokenizer(text, add_special_tokens=False).input_ids
    tag = base.tokenizer.convert_tokens_to_ids("<image>")
    expected = [VIDEO_TOKEN_ID if token == tag else token for token in tokens]
    assert base.chat("and a human?", HISTORY, "barks").ids == expected


def test_the_prompt_of_the_tower_has_an_answer_only_with_official_labels(config: Config) -> None:
    base = build.load_base(config.base)
    question = base.prompt_tokenizer("and a human?").input_ids
    for labels, answer in (("answers", "barks"), ("answers", None), ("official", None)):
        assert base.chat("and a human?", HISTORY, answer, labels).prompt_ids == question
    conversation = base.prompt_tokenizer("what is heard? a dog and a human? barks").input_ids
    assert base.chat("and a human?", HISTORY, "barks", "official").prompt_ids == conversation


@torch.no_grad()
def test_images_are_pooled_alone(config: Config) -> None:
    base = build.load_base(config.base)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in ((40, 30), (84, 84), (20, 60))]
    sample = make_sample(config, base, "what is heard?", Images(images), {}, answer="a dog")
    assert sample.pixels.shape == (3, 3, 84, 84)
    assert sample.ids.count(VIDEO_TOKEN_ID) == 3 * TOKENS_PER_PAIR
    assert torch.equal(base.preprocess(np.stack([images[1]] * 2))[0, :3], sample.pixels[1])

    prompt_ids = torch.tensor([sample.prompt_ids])
    tower, projector = encoder.load(Path(config.base.path))
    projected, weights = projector(tower(sample.pixels[None]), prompt_ids)
    expected = encoder.weighted_pool(projected.unflatten(2, (6, 6)), weights.unflatten(2, (6, 6)), (1, 3, 3))
    actual = base.encode(sample.pixels[None], prompt_ids).embeds
    assert_close(actual, expected.flatten(2, 3), atol=1e-5, rtol=1e-5)

    # With a video in one batch.
    clip = Clip(rng.integers(0, 256, (FRAMES, 40, 30, 3), np.uint8), np.arange(FRAMES) / 2)
    video = make_sample(config, base, "what is heard?", clip, {}, answer="a dog")
    assert PatchedModel(base, {})(**collate([sample, video], base.tokenizer.pad_token_id))["loss"].isfinite()
    with pytest.raises(UserError, match="the tower knows 8 "):
        base.preprocess_images([images[0]] * 9)


def test_only_the_branch_of_the_towers_trains(config: Config) -> None:
    config = dataclasses.replace(
        config, lora=LoraConfig(r=0), base=dataclasses.replace(config.base, trainable=["tower", "projector", "llm"])
    )
    model = build.create(config)
    samples = make_samples(config, model.base, CASE.sizes)
    model(**make_batch(samples, model.base.tokenizer.pad_token_id))["loss"].backward()
    trainable = {name for name, parameter in model.base.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in model.base.named_parameters() if parameter.grad is not None} == trainable
    assert all("btadapter" in name for name in trainable if name.startswith("vision_tower."))
    assert any(name.startswith("vision_tower.btadapter_T") for name in trainable)
    projector = {name.removeprefix("multi_modal_projector.") for name in trainable if "projector." in name}
    assert projector == {
        *(f"{layer}.{part}" for layer in ("linear_1", "linear_2", "clip_visual_ln") for part in ("weight", "bias")),
        *("clip_visual_projection.weight", "clip_text_projection.weight"),
    }


def test_pixels_are_those_of_the_processor_with_aspect_ignored(config: Config) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 40, 61, 3), np.uint8)
    processor = CLIPImageProcessorPil(size={"height": 84, "width": 84}, do_center_crop=False)
    expected = processor([*frames], return_tensors="pt")["pixel_values"]
    base = build.load_base(config.base)
    assert_close(base.preprocess(frames), expected.flatten(0, 1)[None], atol=1e-6, rtol=0)


def test_counts_and_folders_that_do_not_fit(config: Config, tmp_path: Path) -> None:
    base = build.load_base(config.base)
    with pytest.raises(UserError, match=r"base\.frames=3: frames are pooled in pairs"):
        base.preprocess(np.zeros((3, 8, 8, 3), np.uint8))
    with pytest.raises(UserError, match=r"base\.frames=10: the tower knows 8 "):
        base.preprocess(np.zeros((10, 8, 8, 3), np.uint8))
    with pytest.raises(UserError, match=r"depend on the question; leave data\.video_tokens empty"):
        base.num_visual_tokens(2, (4, 56))

    folder = Path(config.base.path)
    config_json = json.loads((folder / "config.json").read_text())
    for change in ({"pooling": "avp"}, {"extend_clip": False}, {"pooling_kernel": [1, 3, 3]}):
        (tmp_path / "config.json").write_text(json.dumps({**config_json, **change}))
        with pytest.raises(UserError, match=f"{next(iter(change))} is .*give a PPLLaVA checkpoint"):
            ppllava.Base.load(str(tmp_path))
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
    config_json = {**PPLLAVA_CONFIG, "vision_config": vision, "text_config": text, "btadapter_depth": 4, "max_T": 64}
    (tmp_path / "config.json").write_text(json.dumps(config_json))
    base = ppllava.Base.load(str(tmp_path), weights=False)
    assert [base.num_visual_tokens(frames // 2, (336, 336)) for frames in (32, 64)] == [1024, 2048]
    pixels = torch.empty_like(base.preprocess(np.zeros((2, 8, 8, 3), np.uint8))[None], device="meta")
    query, embeds = base.encode(pixels, torch.zeros(1, 9, dtype=torch.long, device="meta"))
    assert (query.shape, embeds.shape) == ((1, 1, 64, 1024), (1, 1, 64, 4096))
    assert (base.query_dim, base.embed_dim) == (1024, 4096)
    work, projector, _ = op_counter.count_vision(PatchedModel(base, {}), 2)
    assert 0 < projector < work.flops
    assert sum(p.numel() for p in base.hf.parameters()) == 6_738_415_616 + 2 * 4096 * 64
