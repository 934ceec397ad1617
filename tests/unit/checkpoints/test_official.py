"""Whole models in the official checkpoint layouts against the official code (tests/golden/e2e)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.official_runs import (
    BASE,
    E2E,
    FRAMES,
    SUMMARY,
    arrays,
    audio,
    check_run,
    fresh,
    generate,
    inputs,
    patched,
)
from torch.testing import assert_close

from pave.checkpoints import official
from pave.data.collate import expand_video_tokens, pad_rows
from pave.models import lora
from pave.models.base import LoadSettings
from pave.models.bases import llava_onevision
from pave.models.patched_model import PatchedModel


def test_base_alone() -> None:
    base = llava_onevision.Base.load(BASE, LoadSettings(newline="one_token", vision_heads=4), trim_vocabulary=False)
    model = PatchedModel(base, {})
    check_run(model, "a_base_only", {})
    data = arrays("a_base_only")
    with torch.no_grad():
        query, embeds = base.encode(base.preprocess(FRAMES["video_a"])[None])
    assert query.shape == (1, 4, 196, 64)
    assert_close(embeds[0][:, ::28], data["pooled_rows"], atol=1e-5, rtol=0)


def test_preprocessing_is_bit_exact() -> None:
    data, base = arrays("preprocess"), patched().base
    assert torch.equal(base.preprocess(FRAMES["small"])[:, :, ::48, ::48], data["small_rows"])
    assert torch.equal(base.preprocess(FRAMES["video_a"])[:, :, ::64, ::64], data["video_a_rows"])


def test_patched() -> None:
    check_run(patched(), "b_pave", audio("audio/vid_a"))
    data = arrays("b_pave")
    model = patched()
    with torch.no_grad():
        query, _ = model.base.encode(model.base.preprocess(FRAMES["video_a"])[None])
        update = model.patches["audio"](query, audio("audio/vid_a")["audio"]["x"])
    assert_close(query[0][:, ::28], data["before_mlp_rows"], atol=1e-5, rtol=0)
    assert_close(update.flatten(0, 2)[::49], data["patch_rows"], atol=1e-4, rtol=0)


def test_batch_of_two_equals_official_and_its_parts() -> None:
    check_run(patched(), "c_batch2", audio("audio/vid_a", "audio/vid_b"), "ab")
    batch = inputs(patched(), "c_batch2", "ab")
    for b, name in enumerate(("audio/vid_a", "audio/vid_b")):
        keep = batch["mask"][b]
        alone = {k: batch[k][b : b + 1][:, keep] for k in ("ids", "labels", "mask")}
        with torch.no_grad():
            loss = patched()(**alone, pixels=batch["pixels"][b : b + 1], sides=audio(name))["loss"]
        assert_close(loss.item(), SUMMARY["facts"]["c_single_losses"][b], atol=5e-5, rtol=0)


def test_patch_without_lora_and_lora_without_patch() -> None:
    check_run(patched(), "b_lora_without_patch", {})
    model = fresh()
    for name, parameter in model.named_parameters():
        if ".lora_B" in name:
            parameter.data.zero_()
    check_run(model, "b_patch_without_lora", audio("audio/vid_a"))


def test_gradients() -> None:
    model, data = fresh(), arrays("c_grads")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or name.startswith("patches"))
    model(**inputs(model, "c_batch2", "ab"), sides=audio("audio/vid_a", "audio/vid_b"))["loss"].backward()
    prefix = "base_model.model.model."
    ours = {}
    for name, parameter in model.named_parameters():
        if name.startswith("patches.audio."):
            released = official.patch_name(name.removeprefix("patches.audio."))
            ours[f"{prefix}temporal_aggregator.{released}"] = parameter.grad
        elif parameter.requires_grad:
            ours[prefix + name.removeprefix("base.hf.model.language_model.")] = parameter.grad
    without = {name for name, grad in ours.items() if grad is None}
    assert without == set(SUMMARY["facts"]["params_without_grad"])
    assert ours.keys() - without == data.keys()
    for name, expected in data.items():
        assert (ours[name] - expected).norm() < 1e-3 * expected.norm(), name


def test_merged_and_saved_layouts() -> None:
    merged = fresh()
    lora.merge(merged.base.hf)
    check_run(merged, "d_merged_forward", audio("audio/vid_a"))
    check_run(fresh("tiny_pave_v5_1_3_adaptor"), "h_adaptor", audio("audio/vid_a"))


@pytest.mark.parametrize("newline", ["grid", "frame", "one_token", "no_token"])
def test_newline_modes(newline: str) -> None:
    model = fresh()
    model.base.newline = newline  # the grid run is bit-equal to that of the merged model and stored once
    check_run(model, "d_merged_forward" if newline == "grid" else f"e_newline_{newline}", audio("audio/vid_a"))


@pytest.mark.parametrize("pool", ["average", "max"])
def test_pooling_modes(pool: Any) -> None:
    check_run(fresh(pool=pool), f"e_pool_{pool}", audio("audio/vid_a"))


def test_other_side_channels() -> None:
    check_run(patched(), "g_languagebind", audio("languagebind/vid_a"))
    check_run(patched(), "g_audio_3dim", audio("audio/vid_3dim"))
    one = audio("audio/vid_a")
    one["audio"] = {"x": one["audio"]["x"][:, :1], "steps": [1], "seconds": None}
    check_run(patched(), "g_audio_one_step", one)
    scene = torch.load(E2E / "data/3d/scene_a.pt", weights_only=True).float().view(1, 4, 36, 32)
    check_run(patched(), "g_3d", {"audio": {"x": scene, "steps": [4], "seconds": None}})


def test_text_only() -> None:
    data = arrays("h_text_only")
    mask = torch.ones_like(data["input_ids"]).bool()
    with torch.no_grad():
        loss = patched()(data["input_ids"], mask, data["labels"])["loss"]
    assert_close(loss.item(), SUMMARY["h_text_only"]["loss"], atol=5e-5, rtol=0)


@pytest.mark.parametrize("q", ["q0", "q1"])
def test_generation_token_by_token(q: str) -> None:
    stored, sides = SUMMARY["d_generate"], audio("audio/vid_a")
    for tag, options, side in (
        ("official_genconfig", {"max_new_tokens": 12}, sides),
        ("no_repetition_penalty", {"max_new_tokens": 12, "repetition_penalty": 1.0}, sides),
        ("24tokens", {"max_new_tokens": 24}, sides),
        ("video_only", {"max_new_tokens": 12}, {}),
    ):
        expected = stored[f"{q}_fp32_{tag}"]["tokens"][1:]
        assert generate(patched(), stored[f"{q}_ids"], side, **options) == expected, tag


def test_half_precision_generation() -> None:
    model = fresh(dtype="float16")
    assert model.patches["audio"].layers[0].q.weight.dtype == torch.float32
    for question, tokens in SUMMARY["half_and_edges"]["half_generate"].items():
        ids = model.base.chat(question).ids
        assert generate(model, ids, audio("audio/vid_a"), max_new_tokens=12) == tokens[1:]


def test_half_precision_embeddings_and_logits() -> None:
    model, data = fresh(dtype="float16"), arrays("d_half")
    ids, _ = expand_video_tokens(
        (e := model.base.chat("What is the person doing in the video?")).ids, e.labels, 840, 32768
    )
    pixels = model.base.preprocess(FRAMES["video_a"])[None]
    with torch.no_grad():
        embeds = model.splice(torch.tensor([ids]), pixels, audio("audio/vid_a"))
        hidden = model.base.llm(inputs_embeds=embeds).last_hidden_state
        logits = model.base.lm_head(hidden[0, -4:])
    assert embeds.dtype == torch.float16
    assert_close(embeds[0, data["embeds_rows"]].float(), data["embeds"].float(), atol=5e-3, rtol=0)
    assert_close(logits.float(), data["logits_last4"].float().view(4, -1), atol=0.05, rtol=0)


def test_trained_checkpoint_answers_by_ear() -> None:
    model = fresh("tiny_pave_v5_1_3_lora_trained")
    for key, expected in SUMMARY["d_trained"]["generate"].items():
        video, sound, question = key.split("|")
        encoded = model.base.chat(question)
        assert encoded.ids == expected["ids"]
        new = generate(model, encoded.ids, audio(f"audio/{sound}"), video[-1], max_new_tokens=20)
        assert new == expected["tokens"][1:], key
        assert model.base.tokenizer.decode(new, skip_special_tokens=True) == expected["text"]


def test_left_padded_batch_generates_as_alone() -> None:
    model = fresh("tiny_pave_v5_1_3_lora_trained")
    questions = ["Did you hear the sound of a dog barking?", "What is the person doing in the video?"]
    n = model.base.num_visual_tokens(4)
    rows = [expand_video_tokens(e.ids, e.labels, n, 32768)[0] for e in map(model.base.chat, questions)]
    pixels = torch.stack([model.base.preprocess(FRAMES[f"video_{v}"]) for v in "ab"])
    mask = pad_rows([[1] * len(r) for r in rows], 0, left=True).bool()
    new = model.generate(
        pad_rows(rows, 0, left=True), mask, pixels, audio("audio/vid_a", "audio/vid_b"), max_new_tokens=20
    )
    texts = model.base.tokenizer.batch_decode(new, skip_special_tokens=True)
    stored = SUMMARY["d_trained"]["generate"]
    assert texts == [stored[f"video_{v}|vid_{v}|{q}"]["text"] for v, q in zip("ab", questions)]
