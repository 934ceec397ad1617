"""Qwen2.5-VL: the same numbers as transformers at any size, with its own positions; patches, pixels, errors."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.base_runs import make_batch, make_samples, make_trained
from helpers.tiny_bases import LAYERS, randomise
from helpers.tiny_model import TinySetup, make_config
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessorPil

from pave.checkpoints import build, patch_folder
from pave.config import Config
from pave.data.collate import Sample, collate
from pave.data.dataset import Questions
from pave.inference import generation
from pave.models.bases import _qwen_vl, qwen2_5_vl, qwen3_vl
from pave.models.patched_model import Pave
from pave.training import train
from pave.types import IGNORE, VIDEO, UserError

SIZES = [[(84, 112), (84, 112)], [(84, 112), (112, 56)]]
"""Two videos alike, and of two shapes."""


def of_the_processor(hf: Any, samples: list[Sample], left: bool, speeds: list[float]) -> dict[str, Any]:
    """What transformers would be given for these samples."""
    batch = collate(samples, hf.generation_config.pad_token_id, left)
    grids = [(len(s.pixels), s.pixels.shape[-2] // 14, s.pixels.shape[-1] // 14) for s in samples]
    flat = []
    for s, (t, h, w) in zip(samples, grids):
        x = s.pixels.view(1, t, 2, 3, h // 2, 2, 14, w // 2, 2, 14).permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9)
        flat.append(x.reshape(t * h * w, 3 * 2 * 14 * 14))
    return {
        "input_ids": torch.where(batch["ids"] == VIDEO, hf.config.video_token_id, batch["ids"]),
        "attention_mask": batch["mask"].long(),
        "pixel_values_videos": torch.cat(flat),
        "video_grid_thw": torch.tensor(grids),
        "second_per_grid_ts": torch.tensor(speeds),
        "mm_token_type_ids": 2 * (batch["ids"] == VIDEO).int(),
    }


@pytest.mark.parametrize("sizes", SIZES, ids=["alike", "two shapes"])
@torch.no_grad()
def test_logits_and_answers_are_those_of_the_transformers_class(
    folder: Path, config: Config, sizes: list[tuple[int, int]]
) -> None:
    model = Pave(build.load_base(config.base), {})
    hf = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder).eval()
    samples = make_samples(config, model.base, sizes, "a dog barks")
    batch, pad_id = make_batch(samples, model.base.tokenizer.pad_token_id), model.base.tokenizer.pad_token_id
    assert isinstance(batch["pixels"], list) == (sizes[0] != sizes[1])
    # 6 frames at .5 and 1.5 s are 3 rows, 1 and 3 s apart.
    given = of_the_processor(hf, samples, False, [1.0, 3.0])
    want = hf(**given).logits
    places = model.positions(batch["ids"], batch["mask"], batch["pixels"], batch["frame_seconds"])
    embeds = model.splice(batch["ids"], batch["pixels"], {}, batch["frame_seconds"])
    hidden = model.base.lm(inputs_embeds=embeds, attention_mask=batch["mask"], position_ids=places).last_hidden_state
    ours, real = model.base.head(hidden), batch["mask"]
    assert torch.equal(ours[real], want[real])
    everywhere = torch.where(batch["mask"], batch["ids"].clamp(min=0), IGNORE)
    assert torch.equal(model(**{**batch, "labels": everywhere, "sides": {}})["logits"], want[:, :-1][real[:, 1:]])
    plain = model.base.lm(inputs_embeds=embeds, attention_mask=batch["mask"]).last_hidden_state
    assert not torch.allclose(model.base.head(plain)[real], want[real], atol=1e-3)  # these positions are no detail

    asked = make_samples(config, model.base, sizes, None)
    given = of_the_processor(hf, asked, True, [1.0, 3.0])
    want = hf.generate(**given, max_new_tokens=6, do_sample=False)[:, given["input_ids"].shape[1] :]
    assert torch.equal(model.generate(**make_batch(asked, pad_id, left=True), max_new_tokens=6), want)


@torch.no_grad()
def test_tokens_and_positions_of_a_video(config: Config) -> None:
    base = build.load_base(config.base)
    [sample] = make_samples(config, base, [(84, 112)], None)
    assert sample.pixels is not None
    assert sample.pixels.shape == (3, 6, 84, 112)
    assert sample.frame_seconds is not None
    assert sample.frame_seconds.tolist() == [0.25, 1.25, 2.25]
    seen = base.encode(sample.pixels[None])
    assert seen.query.shape == seen.embeds.shape == (1, 3, 12, base.query_dim)
    assert base.layout(seen.embeds).shape[1] == base.visual_tokens(3, (84, 112)) == sample.ids.count(VIDEO) == 36
    ids = torch.tensor([[5, 6, *[VIDEO] * 36, 7, 8]])
    found = base.positions(ids, ids != 0, [sample.pixels], [sample.frame_seconds])[:, 0]
    assert found[:, :2].tolist() == [[0, 1]] * 3
    assert found[:, 2:38].view(3, 3, 3, 4)[0, :, 0, 0].tolist() == [2, 4, 6]  # 2 a second
    assert found[1, 2:38].view(3, 3, 4)[0, :, 0].tolist() == [2, 3, 4]
    assert found[2, 2:38].view(3, 3, 4)[0, 0].tolist() == [2, 3, 4, 5]
    assert found[:, 38:].tolist() == [[6, 7]] * 3
    cut = base.positions(ids[:, :20], ids[:, :20] != 0, [sample.pixels], [sample.frame_seconds])[:, 0]
    assert torch.equal(cut, found[:, :20])
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], 1)
    left = base.positions(padded, padded != 0, [sample.pixels], [sample.frame_seconds])[:, 0]
    assert torch.equal(left[:, 3:], found)
    text = torch.tensor([[5, 6, 7], [0, 5, 6]])
    assert base.positions(text, text != 0, [], None)[0].tolist() == [[0, 1, 2], [0, 0, 1]]


@torch.no_grad()
def test_two_answers_about_one_video_stand_where_each_alone_would(config: Config) -> None:
    """As learning from preferences has it: rows of a second answer come without videos of their own."""
    model = build.create(config).eval()
    samples = make_samples(config, model.base, SIZES[1], "a dog")
    once = [*samples, *(one._replace(pixels=None) for one in samples)]
    found, want = (
        model(**make_batch(rows, model.base.tokenizer.pad_token_id)) for rows in (once, [*samples, *samples])
    )
    assert torch.equal(found["logits"], want["logits"])


def test_frames_as_the_processors_of_both_models_choose_them() -> None:
    """By hand: two a second, at least 4 and at most 768; in pairs at equal steps, or from end to end."""
    assert qwen2_5_vl.choose(300, 30.0).tolist() == list(range(0, 300, 15))
    assert qwen2_5_vl.choose(7, 25.0).tolist() == [0, 1, 3, 5]
    assert [qwen2_5_vl.choose(n, 25.0).tolist() for n in (3, 1)] == [[0, 1], [0, 0]]
    assert len(qwen2_5_vl.choose(100_000, 25.0)) == len(qwen3_vl.choose(100_000, 25.0)) == 768
    assert qwen3_vl.choose(61, 12.0).tolist() == [0, 7, 13, 20, 27, 33, 40, 47, 53, 60]
    assert qwen3_vl.choose(3, 25.0).tolist() == [0, 1, 2]


def test_an_odd_frame_counts_twice(config: Config) -> None:
    config = dataclasses.replace(config, base=dataclasses.replace(config.base, frames=5))
    [sample] = make_samples(config, build.load_base(config.base), [(56, 56)], None)
    assert sample.pixels is not None
    assert sample.pixels.shape == (3, 6, 56, 56)
    assert torch.equal(sample.pixels[2, :3], sample.pixels[2, 3:])
    assert sample.frame_seconds is not None
    assert sample.frame_seconds.tolist() == [0.25, 1.25, 2.0]


@pytest.mark.parametrize("sizes", SIZES, ids=["alike", "two shapes"])
def test_fresh_patch_changes_no_bit_and_only_patch_and_lora_learn(config: Config, sizes: list[tuple[int, int]]) -> None:
    model = build.create(config).eval()
    batch = make_batch(make_samples(config, model.base, sizes, "a dog barks"), model.base.tokenizer.pad_token_id)
    everywhere = {**batch, "labels": torch.where(batch["mask"], batch["ids"].clamp(min=0), IGNORE)}
    with torch.no_grad():
        alone = Pave(build.load_base(config.base), {})(**{**everywhere, "sides": {}})["logits"]
        assert torch.equal(model(**everywhere)["logits"], alone)
        randomise(model.patches.parameters())
        changed = model(**everywhere)["logits"]
    silent = int(batch["mask"][0, 1:].sum())
    assert torch.equal(changed[:silent], alone[:silent])
    assert not torch.allclose(changed[silent:], alone[silent:])
    model.train()(**batch)["loss"].backward()
    learns = {name for name, p in model.named_parameters() if p.grad is not None}
    assert {train.part_of(name) for name in learns} == {"patch audio", "LoRA"}
    assert len([n for n in learns if "lora_A" in n]) == 7 * LAYERS


def test_videos_of_several_sizes_are_seen_as_if_alone(config: Config) -> None:
    model = make_trained(config)
    samples = make_samples(config, model.base, [(84, 112), (112, 56), (56, 56)], "a dog barks")
    pad_id = model.base.tokenizer.pad_token_id
    with torch.no_grad():
        together = model(**make_batch(samples, pad_id))["logits"]
        alone = torch.cat([model(**make_batch([sample], pad_id))["logits"] for sample in samples])
    assert torch.allclose(together, alone, atol=1e-4)


def test_answers_and_a_saved_folder(config: Config, tmp_path: Path) -> None:
    model = make_trained(config)
    asked = make_samples(config, model.base, SIZES[1], None)
    batch = make_batch(asked, model.base.tokenizer.pad_token_id, left=True)
    wanted = model.generate(**batch, max_new_tokens=6)
    assert not torch.equal(Pave(model.base, {}).generate(**{**batch, "sides": {}}, max_new_tokens=6), wanted)
    patch_folder.save(model, config, tmp_path / "patch")
    again, _ = build.load(tmp_path / "patch", [])
    assert torch.equal(again.eval().generate(**batch, max_new_tokens=6), wanted)


def test_shared_beginnings_give_the_same_answers(config: Config) -> None:
    """Positions after the video go on from where the model's own do, for each video."""
    model = make_trained(config)
    asked = []
    for sample in make_samples(config, model.base, [(84, 112), (112, 56)], None):
        encoded = model.base.chat("what barks? a dog barks?")
        end = encoded.ids[encoded.ids.index(VIDEO) + 1 :]
        other = sample.ids[: len(sample.ids) - sample.ids[::-1].index(VIDEO)] + end
        asked.append(generation.Asked(sample, [sample.ids, other]))
    how = generation.decoding(model, 5)
    found = generation.answers(model, asked, how, 3)
    pad_id = model.base.tokenizer.pad_token_id
    for a, rows in zip(asked, found):
        for prompt, tokens in zip(a.prompts, rows):
            batch = make_batch([a.sample._replace(ids=prompt, labels=[])], pad_id, left=True)
            new = model.generate(**batch, max_new_tokens=5)[0].tolist()
            assert tokens == [t for i, t in enumerate(new) if not set(new[: i + 1]) & set(how.end)]


def test_prompt_is_the_chat_template(config: Config) -> None:
    base = build.load_base(config.base)
    text = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|><|video_pad|>"
    text += "<|vision_end|>what is heard?<|im_end|>\n<|im_start|>assistant\n"
    tokens = base.tokenizer(text, add_special_tokens=False).input_ids
    want = [VIDEO if token == base.hf.config.video_token_id else token for token in tokens]
    assert base.chat("what is heard?").ids == want
    said = base.chat("what is heard?", (), "a dog")
    learnt = [label for label in said.labels if label != IGNORE]
    assert base.tokenizer.decode(learnt) == "a dog<|im_end|>\n"
    assert said.ids[: len(want)] == want


@pytest.mark.parametrize("size", [(84, 112), (90, 131), (20, 300), (500, 640), (28, 28)])
def test_pixels_are_those_of_the_processor(config: Config, size: tuple[int, int]) -> None:
    base = build.load_base(config.base)
    frame = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    bounds = {"shortest_edge": 28 * 28 * 4, "longest_edge": 28 * 28 * 12}
    want = Qwen2VLImageProcessorPil(size=bounds)(frame, return_tensors="pt")
    pixels = base.preprocess(frame[None])  # one frame, taken twice, as the processor does with a picture
    seen: list[Tensor] = []
    base.vision_tower.patch_embed.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    base.encode(pixels[None])
    assert [[1, pixels.shape[-2] // 14, pixels.shape[-1] // 14]] == want["image_grid_thw"].tolist()
    assert torch.allclose(seen[0], want["pixel_values"], atol=1e-6, rtol=0)


def test_what_the_processor_says(folder: Path, tmp_path: Path) -> None:
    assert _qwen_vl.processor(tmp_path) == _qwen_vl.Pixels()
    assert _qwen_vl.processor(folder)[:2] == (3136, 9408)
    told = {"size": {"shortest_edge": 1000, "longest_edge": 2000}, "image_mean": [0.5] * 3}
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(told))
    found = _qwen_vl.processor(tmp_path)
    assert found[:3] == (1000, 2000, [0.5] * 3)
    assert found.std == _qwen_vl.Pixels().std


def test_it_trains_on_videos_but_not_on_stored_tokens(config: Config, tiny_setup: TinySetup, tmp_path: Path) -> None:
    config = dataclasses.replace(make_config(Path(config.base.path), tiny_setup.data, max_steps=2), base=config.base)
    train.main(config, tmp_path)
    fresh, (trained, _) = build.create(config), build.load(tmp_path / "final", [])
    moved = [not torch.equal(a, b) for a, b in zip(fresh.patches.parameters(), trained.patches.parameters())]
    assert any(moved)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, video_tokens="features/audio"))
    questions = Questions(config, fresh.base, "train", with_answers=True, complete=False)
    with pytest.raises(UserError, match="tells no size of pictures, which qwen2_5_vl needs"):
        questions[0]
