"""Qwen3-VL: the same numbers as transformers, with time stamps, positions and features of inner layers; patches."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.base_runs import make_batch, make_samples, make_trained
from helpers.tiny_bases import EXTRA, LAYERS, make_qwen3, randomise
from helpers.tiny_model import TinySetup
from helpers.tiny_model import make_config as tiny_config
from torch import Tensor
from transformers import Qwen3VLForConditionalGeneration

from pave import config as configs
from pave.analysis import profile
from pave.analysis.op_counter import Shape
from pave.checkpoints import build
from pave.cli.main import main
from pave.config import BaseConfig, Config, DataConfig, LoraConfig, PatchConfig
from pave.data import visual_token_cache
from pave.data.collate import Sample, collate, expand
from pave.inference import generation
from pave.models import lora
from pave.models.bases import qwen3_vl
from pave.models.bases._loading import Settings
from pave.models.patched_model import Pave
from pave.training import train
from pave.types import IGNORE, VIDEO, UserError
from pave.utils import registry

SIZES = [[(96, 128), (96, 128)], [(96, 128), (128, 64)]]
"""Two videos alike, and of two shapes."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_qwen3(tmp_path_factory.mktemp("qwen3"))


@pytest.fixture
def config(folder: Path) -> Config:
    return Config(
        base=BaseConfig(name="qwen3_vl", path=str(folder), frames=6, newline="no_token", dtype="float32"),
        sides={"audio": PatchConfig(side_dim=12, hidden_dim=16, side_hidden_dim=16)},
        lora=LoraConfig(r=2, alpha=4, dropout=0.0),
        data=DataConfig(max_length=400),
    )


def of_the_processor(hf: Any, samples: list[Sample], left: bool) -> dict[str, Any]:
    """What transformers would be given for these samples."""
    batch = collate(samples, hf.generation_config.pad_token_id, left)
    grids = [(len(s.pixels), s.pixels.shape[-2] // 16, s.pixels.shape[-1] // 16) for s in samples]
    flat = []
    for s, (t, h, w) in zip(samples, grids):
        x = s.pixels.view(1, t, 2, 3, h // 2, 2, 16, w // 2, 2, 16).permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9)
        flat.append(x.reshape(t * h * w, 3 * 2 * 16 * 16))
    return {
        "input_ids": torch.where(batch["ids"] == VIDEO, hf.config.video_token_id, batch["ids"]),
        "attention_mask": batch["mask"].long(),
        "pixel_values_videos": torch.cat(flat),
        "video_grid_thw": torch.tensor(grids),
        "mm_token_type_ids": 2 * (batch["ids"] == VIDEO).int(),
    }


def read(model: Pave, batch: dict[str, Any]) -> Tensor:
    """Logits everywhere."""
    places = model.positions(batch["ids"], batch["mask"], batch["pixels"], batch["frame_seconds"])
    embeds = model.splice(batch["ids"], batch["pixels"], {}, batch["frame_seconds"])
    hidden = model.base.lm(inputs_embeds=embeds, attention_mask=batch["mask"], position_ids=places).last_hidden_state
    return model.base.head(hidden)


@pytest.mark.parametrize("sizes", SIZES, ids=["alike", "two shapes"])
@torch.no_grad()
def test_logits_and_answers_are_those_of_the_transformers_class(
    folder: Path, config: Config, sizes: list[tuple[int, int]]
) -> None:
    model = Pave(build.load_base(config.base), {})
    hf = Qwen3VLForConditionalGeneration.from_pretrained(folder).eval()
    samples, pad_id = make_samples(config, model.base, sizes, "a dog barks"), model.base.tokenizer.pad_token_id
    batch = make_batch(samples, pad_id)
    assert isinstance(batch["pixels"], list) == (sizes[0] != sizes[1])
    want, real = hf(**of_the_processor(hf, samples, False)).logits, batch["mask"]
    assert torch.equal(read(model, batch)[real], want[real])
    everywhere = torch.where(batch["mask"], batch["ids"].clamp(min=0), IGNORE)
    assert torch.equal(model(**{**batch, "labels": everywhere, "sides": {}})["logits"], want[:, :-1][real[:, 1:]])
    # Neither positions nor what is added in inner layers are details.
    embeds = model.splice(batch["ids"], batch["pixels"], {}, batch["frame_seconds"])
    plain = model.base.lm(inputs_embeds=embeds, attention_mask=batch["mask"]).last_hidden_state
    assert not torch.allclose(model.base.head(plain)[real], want[real], atol=1e-3)
    places = model.positions(batch["ids"], batch["mask"], batch["pixels"], batch["frame_seconds"])
    shallow = model.base.lm(inputs_embeds=embeds[..., :48], attention_mask=batch["mask"], position_ids=places)
    assert not torch.allclose(model.base.head(shallow.last_hidden_state)[real], want[real], atol=1e-3)

    asked = make_samples(config, model.base, sizes, None)
    given = of_the_processor(hf, asked, True)
    want = hf.generate(**given, max_new_tokens=6, do_sample=False)[:, given["input_ids"].shape[1] :]
    assert torch.equal(model.generate(**make_batch(asked, pad_id, left=True), max_new_tokens=6), want)


@pytest.mark.parametrize("frames", [2, 5, 8])
@torch.no_grad()
def test_other_numbers_of_frames(folder: Path, config: Config, frames: int) -> None:
    config = dataclasses.replace(config, base=dataclasses.replace(config.base, frames=frames))
    model = Pave(build.load_base(config.base), {})
    hf = Qwen3VLForConditionalGeneration.from_pretrained(folder).eval()
    samples = make_samples(config, model.base, [(96, 128)], "a dog barks")
    assert samples[0].pixels is not None
    assert samples[0].pixels.shape[0] == math.ceil(frames / 2)
    batch = make_batch(samples, model.base.tokenizer.pad_token_id)
    assert torch.equal(read(model, batch), hf(**of_the_processor(hf, samples, False)).logits)


@torch.no_grad()
def test_tokens_and_positions_of_a_video(config: Config) -> None:
    base = build.load_base(config.base)
    [sample] = make_samples(config, base, [(96, 128)], None)
    assert sample.pixels is not None
    assert sample.pixels.shape == (3, 6, 96, 128)
    seen = base.encode(sample.pixels[None])
    assert (seen.query.shape, seen.embeds.shape) == ((1, 3, 12, 48), (1, 3, 12, 48 * 3))
    assert torch.equal(seen.embeds[..., :48], seen.query)
    assert base.layout(seen.embeds).shape[1] == base.visual_tokens(3, (96, 128)) == sample.ids.count(VIDEO) == 36
    start, end = base.tokenizer.convert_tokens_to_ids(EXTRA[:2])
    stamps = base.tokenizer(["<0.2 seconds>", "<1.2 seconds>", "<2.2 seconds>"]).input_ids
    video = [token for stamp in stamps for token in (*stamp, start, *[VIDEO] * 12, end)]
    assert visual_token_cache.ids(base, sample.pixels, sample.frame_seconds) == video
    assert "".join(map(str, video)) in "".join(map(str, sample.ids))
    ids = torch.tensor([[5, 6, *video, 7, 8]])
    found = base.positions(ids, ids != 0, [sample.pixels], [sample.frame_seconds])[:, 0]
    rows = found[:, ids[0] == VIDEO].view(3, 3, 3, 4)
    first = [2 + len(stamps[0]) + 1]  # after the text, a row moves on by its longer side, its marks and the stamp
    first += [first[0] + i * (4 + 2 + len(stamps[0])) for i in (1, 2)]
    assert rows[0, :, 0, 0].tolist() == first
    assert rows[0, 1].unique().tolist() == [first[1]]
    assert rows[1, 1, :, 0].tolist() == [first[1] + i for i in range(3)]
    assert rows[2, 1, 0].tolist() == [first[1] + i for i in range(4)]
    for cut in (20, len(stamps[0]) + 3, 2 * (len(stamps[0]) + 14) + 1):
        again = base.positions(ids[:, :cut], ids[:, :cut] != 0, [sample.pixels], [sample.frame_seconds])[:, 0]
        assert torch.equal(again, found[:, :cut])
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], 1)
    left = base.positions(padded, padded != 0, [sample.pixels], [sample.frame_seconds])[:, 0]
    assert torch.equal(left[:, 3:], found)


@pytest.mark.parametrize("sizes", SIZES, ids=["alike", "two shapes"])
def test_fresh_patch_changes_no_bit_and_only_patch_and_lora_learn(config: Config, sizes: list[tuple[int, int]]) -> None:
    model = build.create(config).eval()
    samples = make_samples(config, model.base, sizes, "a dog barks")
    batch = make_batch(samples, model.base.tokenizer.pad_token_id)
    with torch.no_grad():
        alone = Pave(model.base, {})(**{**batch, "sides": {}})["logits"]
        assert torch.equal(model(**batch)["logits"], alone)
    randomise([*model.patches.parameters(), *(p for n, p in model.base.hf.named_parameters() if "lora_B" in n)])
    with torch.no_grad():
        visual = model.fuse(batch["pixels"], batch["sides"], batch["frame_seconds"])
        bare = model.fuse(batch["pixels"], {}, batch["frame_seconds"])
        # The second sample has sound: its tokens change, what goes to inner layers does not.
        assert torch.equal(visual[..., 48:], bare[..., 48:])
        assert torch.equal(visual[0], bare[0])
        assert not torch.allclose(visual[1, :, :48], bare[1, :, :48])
    model.train()(**batch)["loss"].backward()
    learns = {name for name, p in model.named_parameters() if p.grad is not None}
    assert {train.part_of(name) for name in learns} == {"patch audio", "LoRA"}
    assert len([n for n in learns if "lora_A" in n]) == 7 * LAYERS


def test_videos_of_several_sizes_are_seen_as_if_alone(config: Config) -> None:
    model = make_trained(config)
    samples = make_samples(config, model.base, [(96, 128), (128, 64), (64, 64)], "a dog barks")
    pad_id = model.base.tokenizer.pad_token_id
    with torch.no_grad():
        together = model(**make_batch(samples, pad_id))["logits"]
        alone = torch.cat([model(**make_batch([sample], pad_id))["logits"] for sample in samples])
    assert torch.allclose(together, alone, atol=1e-4)


def test_shared_beginnings_give_the_same_answers(config: Config) -> None:
    model = make_trained(config)
    asked = []
    for sample in make_samples(config, model.base, [(96, 128), (128, 64)], None):
        encoded = model.base.chat("what barks? a dog barks?")
        assert sample.pixels is not None
        visual = visual_token_cache.ids(model.base, sample.pixels, sample.frame_seconds)
        asked.append(generation.Asked(sample, [sample.ids, expand(encoded.ids, encoded.labels, visual, 400)[0]]))
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
    [sample] = make_samples(config, base, [(96, 128)], "a dog")
    rows = "".join(f"<{t} seconds><|vision_start|>{'<|video_pad|>' * 12}<|vision_end|>" for t in ("0.2", "1.2", "2.2"))
    text = f"<|im_start|>user\n{rows}what is heard?<|im_end|>\n<|im_start|>assistant\na dog<|im_end|>\n"
    tokens = base.tokenizer(text, add_special_tokens=False).input_ids
    assert sample.ids == [VIDEO if token == base.hf.config.video_token_id else token for token in tokens]
    learnt = [label for label in sample.labels if label != IGNORE]
    assert base.tokenizer.decode(learnt) == "a dog<|im_end|>\n"


@pytest.mark.parametrize("size", [(96, 128), (90, 131), (20, 300), (500, 640), (28, 28), (12, 40)])
def test_pictures_are_as_large_as_the_processor_makes_them(config: Config, size: tuple[int, int]) -> None:
    """By the rule of the video processor in transformers, which needs a package that may not be there."""
    base = build.load_base(config.base)
    frames, least, most = 6, 6 * 32 * 32 * 4, 6 * 32 * 32 * 12
    height, width = size
    if min(size) < 32:
        height, width = (int(x * 32 / min(size)) for x in size)
    high, wide = round(height / 32) * 32, round(width / 32) * 32
    if frames * high * wide > most:
        beta = math.sqrt(frames * height * width / most)
        high, wide = (max(32, math.floor(x / beta / 32) * 32) for x in (height, width))
    elif frames * high * wide < least:
        beta = math.sqrt(least / (frames * height * width))
        high, wide = (math.ceil(x * beta / 32) * 32 for x in (height, width))
    pixels = base.preprocess(np.full((6, *size, 3), 255, np.uint8))
    assert pixels.shape == (3, 6, high, wide)
    assert pixels.unique().tolist() == [1.0]


@pytest.mark.parametrize(("path", "parameters"), [("2B", 2_127_532_032), ("4B", 4_437_815_808), ("8B", 8_767_123_696)])
def test_published_names_need_no_files(path: str, parameters: int, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    name = f"Qwen/Qwen3-VL-{path}-Instruct"
    file.write_text(f"base: {{name: qwen3_vl, path: {name}, newline: no_token}}\nsides: {{audio: {{}}}}\n")
    base = build.create(configs.load(file), weights=False).base
    assert sum(p.numel() for n, p in base.named_parameters() if "lora" not in n) == parameters
    assert all(x.is_meta for x in base.parameters())
    assert "qwen3_vl" in registry.names("bases")


def test_profile_and_skeleton(folder: Path, config: Config) -> None:
    there, skeleton = qwen3_vl.load(str(folder)), qwen3_vl.load(str(folder), weights=False)
    assert {n: x.shape for n, x in there.state_dict().items()} == {n: x.shape for n, x in skeleton.state_dict().items()}
    assert there.pixels == skeleton.pixels
    found = profile.profile(config, {"audio": Shape(7, 1)})
    assert found.visual_tokens == 3 * 12
    assert found.rows["vision tower"].gflop > 0


def test_wrong_settings_and_folders_are_answered(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"set base\.newline=no_token"):
        qwen3_vl.load(str(folder), Settings(newline="grid"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl"}))
    with pytest.raises(UserError, match="model_type is qwen2_5_vl, expected qwen3_vl"):
        qwen3_vl.load(str(tmp_path))


def test_it_trains_and_answers(config: Config, tiny_setup: TinySetup, tmp_path: Path) -> None:
    config = dataclasses.replace(tiny_config(Path(config.base.path), tiny_setup.data, max_steps=2), base=config.base)
    train.main(config, tmp_path)
    fresh, (trained, _) = build.create(config), build.load(tmp_path / "final", [])
    assert any(not torch.equal(a, b) for a, b in zip(fresh.patches.parameters(), trained.patches.parameters()))
    assert set(lora.names(trained.base.hf)) == {lora.DEFAULT}
    final = str(tmp_path / "final")
    assert main(["eval", "--ckpt", final, "--out", str(tmp_path / "eval"), "--max-new-tokens", "2"]) == 0
    video, sound = (
        str(tiny_setup.data / "videos/test_00000.mp4"),
        f"audio={tiny_setup.data}/features/audio/test_00000.safetensors",
    )
    asked = ["--ckpt", final, "--video", video, "--ask", "what?", "--features", sound]
    assert main(["demo", *asked, "--max-new-tokens", "2"]) == 0
    assert main(["explain", *asked, "--answer", "dog", "--out", str(tmp_path / "explained")]) == 0
