"""InternVL: the same numbers as transformers, with a heading before each frame; patches, pixels, errors."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.base_runs import make_batch, make_samples, make_trained
from helpers.tiny_bases import LAYERS, make_internvl, randomise
from helpers.tiny_model import TinySetup
from helpers.tiny_model import make_config as tiny_config
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import InternVLForConditionalGeneration

from pave import config as configs
from pave.analysis import profile
from pave.analysis.op_counter import Shape
from pave.checkpoints import build
from pave.cli.main import main
from pave.config import BaseConfig, Config, DataConfig, LoraConfig, PatchConfig
from pave.data import visual_token_cache
from pave.data.collate import Sample, collate, expand
from pave.inference import generation
from pave.models.bases import internvl
from pave.models.bases._loading import Settings
from pave.models.patched_model import Pave
from pave.training import train
from pave.types import IGNORE, VIDEO, UserError
from pave.utils import registry

SIZES = [(60, 80), (80, 40)]
"""All pictures become squares."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_internvl(tmp_path_factory.mktemp("internvl"))


@pytest.fixture
def config(folder: Path) -> Config:
    return Config(
        base=BaseConfig(name="internvl", path=str(folder), frames=4, newline="no_token", dtype="float32"),
        sides={"audio": PatchConfig(side_dim=12, hidden_dim=16, side_hidden_dim=16)},
        lora=LoraConfig(r=2, alpha=4, dropout=0.0),
        data=DataConfig(max_length=400),
    )


def of_the_processor(hf: Any, samples: list[Sample], left: bool) -> dict[str, Any]:
    """What transformers would be given for these samples."""
    batch = collate(samples, hf.generation_config.pad_token_id, left)
    return {
        "input_ids": torch.where(batch["ids"] == VIDEO, hf.config.image_token_id, batch["ids"]),
        "attention_mask": batch["mask"].long(),
        "pixel_values": torch.cat([s.pixels for s in samples if s.pixels is not None]),
    }


@pytest.mark.parametrize("frames", [1, 4, 11])
@torch.no_grad()
def test_logits_and_answers_are_those_of_the_transformers_class(folder: Path, config: Config, frames: int) -> None:
    config = dataclasses.replace(config, base=dataclasses.replace(config.base, frames=frames))
    model = Pave(build.load_base(config.base), {})
    hf = InternVLForConditionalGeneration.from_pretrained(folder).eval()
    samples, pad_id = make_samples(config, model.base, SIZES, "a dog barks"), model.base.tokenizer.pad_token_id
    batch = make_batch(samples, pad_id)
    want, real = hf(**of_the_processor(hf, samples, False)).logits, batch["mask"]
    embeds = model.splice(batch["ids"], batch["pixels"], {}, batch["frame_seconds"])
    ours = model.base.head(model.base.lm(inputs_embeds=embeds, attention_mask=batch["mask"]).last_hidden_state)
    assert torch.equal(ours[real], want[real])
    everywhere = torch.where(batch["mask"], batch["ids"].clamp(min=0), IGNORE)
    assert torch.equal(model(**{**batch, "labels": everywhere, "sides": {}})["logits"], want[:, :-1][real[:, 1:]])
    asked = make_samples(config, model.base, SIZES, None)
    given = of_the_processor(hf, asked, True)
    want = hf.generate(**given, max_new_tokens=6, do_sample=False)[:, given["input_ids"].shape[1] :]
    assert torch.equal(model.generate(**make_batch(asked, pad_id, left=True), max_new_tokens=6), want)


def test_prompt_is_the_processors(config: Config) -> None:
    base = build.load_base(dataclasses.replace(config.base, frames=4))
    [sample] = make_samples(config, base, SIZES[:1], "a dog")
    frames = "\n".join(f"Frame{i + 1}: <img>{'<IMG_CONTEXT>' * 4}</img>" for i in range(4))
    text = f"<|im_start|>user\n{frames}\nwhat is heard?<|im_end|>\n<|im_start|>assistant\na dog<|im_end|>\n"
    tokens = base.tokenizer(text, add_special_tokens=False).input_ids
    assert sample.ids == [VIDEO if token == base.hf.config.image_token_id else token for token in tokens]
    assert sample.ids.count(VIDEO) == base.visual_tokens(4) == 16
    learnt = [label for label in sample.labels if label != IGNORE]
    assert base.tokenizer.decode(learnt) == "a dog<|im_end|>\n"


def test_pixels_and_tokens(config: Config) -> None:
    base = build.load_base(config.base)
    frame = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    pixels = base.preprocess(frame[None])
    small = np.asarray(Image.fromarray(frame).resize((56, 56), Image.Resampling.BICUBIC)) / 255
    want = (small - np.array([0.4, 0.5, 0.6])) / np.array([0.2, 0.25, 0.3])
    assert np.allclose(pixels[0].permute(1, 2, 0).numpy(), want, atol=1e-5)
    seen = base.encode(pixels[None])
    assert (seen.query.shape, seen.embeds.shape) == ((1, 1, 4, 64), (1, 1, 4, 48))
    assert (base.query_dim, base.embed_dim) == (64, 48)
    assert torch.equal(base.multi_modal_projector(seen.query), seen.embeds)
    # A token is what four neighbours say: of 4 x 4 patches the first has those at the upper left.
    tower = base.vision_tower(pixel_values=pixels).last_hidden_state[0, 1:].view(4, 4, 16)
    assert {tuple(x) for x in tower[:2, :2].reshape(-1, 16).tolist()} == {
        tuple(x) for x in seen.query[0, 0, 0].view(4, 16).tolist()
    }


def test_fresh_patch_changes_no_bit_and_only_patch_and_lora_learn(config: Config) -> None:
    model = build.create(config).eval()
    batch = make_batch(make_samples(config, model.base, SIZES, "a dog barks"), model.base.tokenizer.pad_token_id)
    with torch.no_grad():
        alone = Pave(model.base, {})(**{**batch, "sides": {}})["logits"]
        assert torch.equal(model(**batch)["logits"], alone)
    randomise([*model.patches.parameters(), *(p for n, p in model.base.hf.named_parameters() if "lora_B" in n)])
    with torch.no_grad():
        assert not torch.allclose(model(**batch)["logits"], alone)
    model.train()(**batch)["loss"].backward()
    learns = {name for name, p in model.named_parameters() if p.grad is not None}
    assert {train.part_of(name) for name in learns} == {"patch audio", "LoRA"}
    assert len([n for n in learns if "lora_A" in n]) == 7 * LAYERS


def test_shared_beginnings_give_the_same_answers(config: Config) -> None:
    model = make_trained(config)
    asked = []
    for sample in make_samples(config, model.base, SIZES, None):
        encoded = model.base.chat("what barks? a dog barks?")
        assert sample.pixels is not None
        visual = visual_token_cache.ids(model.base, sample.pixels, sample.frame_seconds)
        asked.append(generation.Asked(sample, [sample.ids, expand(encoded.ids, encoded.labels, visual, 400)[0]]))
    how, pad_id = generation.decoding(model, 5), model.base.tokenizer.pad_token_id
    for a, rows in zip(asked, generation.answers(model, asked, how, 3)):
        for prompt, tokens in zip(a.prompts, rows):
            batch = make_batch([a.sample._replace(ids=prompt, labels=[])], pad_id, left=True)
            new = model.generate(**batch, max_new_tokens=5)[0].tolist()
            assert tokens == [t for i, t in enumerate(new) if not set(new[: i + 1]) & set(how.end)]


@pytest.mark.parametrize(("path", "parameters"), [("1B", 938_193_024), ("2B", 2_088_957_440), ("8B", 7_944_373_760)])
def test_published_names_need_no_files(path: str, parameters: int, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    name = f"OpenGVLab/InternVL3-{path}-hf"
    file.write_text(f"base: {{name: internvl, path: {name}, newline: no_token}}\nsides: {{audio: {{}}}}\n")
    base = build.create(configs.load(file), weights=False).base
    assert sum(p.numel() for n, p in base.named_parameters() if "lora" not in n) == parameters
    assert (base.visual_tokens(8), base.query_dim) == (8 * 256, 4096)
    assert "internvl" in registry.names("bases")


def test_profile_and_skeleton(folder: Path, config: Config) -> None:
    there, skeleton = internvl.load(str(folder)), internvl.load(str(folder), weights=False)
    assert {n: x.shape for n, x in there.state_dict().items()} == {n: x.shape for n, x in skeleton.state_dict().items()}
    assert there.pixels == skeleton.pixels
    found = profile.profile(config, {"audio": Shape(7, 1)})
    assert found.visual_tokens == 4 * 4
    assert found.rows["projector"].gflop == pytest.approx(2 * 16 * (64 * 48 + 48 * 48) / 1e9)


def test_wrong_settings_tensors_and_folders_are_answered(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"set base\.newline=no_token"):
        internvl.load(str(folder), Settings(newline="grid"))
    for told, message in (
        ({"model_type": "internvl_chat"}, "model_type is internvl_chat, expected internvl; .* ends in -hf"),
        ({"model_type": "internvl", "vision_feature_layer": -2}, "vision_feature_layer is -2, expected -1"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(told))
        with pytest.raises(UserError, match=message):
            internvl.load(str(tmp_path))
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = load_file(tmp_path / "model.safetensors")
    gone = next(name for name in state if name.endswith("multi_modal_projector.linear_2.bias"))
    save_file({n: x for n, x in state.items() if n != gone}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"not an InternVL checkpoint.*linear_2\.bias"):
        internvl.load(str(tmp_path))


def test_it_trains_and_answers_also_from_stored_tokens(config: Config, tiny_setup: TinySetup, tmp_path: Path) -> None:
    config = dataclasses.replace(tiny_config(Path(config.base.path), tiny_setup.data, max_steps=2), base=config.base)
    train.main(config, tmp_path)
    final = str(tmp_path / "final")
    video, sound = tiny_setup.data / "videos/test_00000.mp4", tiny_setup.data / "features/audio/test_00000.safetensors"
    asked = ["--ckpt", final, "--video", str(video), "--ask", "what?", "--features", f"audio={sound}"]
    assert main(["demo", *asked, "--max-new-tokens", "2"]) == 0
    assert main(["explain", *asked, "--answer", "dog", "--out", str(tmp_path / "explained")]) == 0
    out = ["--max-new-tokens", "2", "--out"]
    assert main(["eval", "--ckpt", final, *out, str(tmp_path / "eval")]) == 0
    stored = tiny_setup.data / "internvl/videos"
    base = [f"base={config.base.name}", f"frames={config.base.frames}", "dtype=float32"]
    made = ["--out", str(stored), "--weights", config.base.path, *base]
    assert main(["extract", "video", "--videos", str(tiny_setup.data / "videos"), *made]) == 0
    again = ["data.video_tokens=internvl", *out, str(tmp_path / "again")]
    assert main(["eval", "--ckpt", final, *again]) == 0
    first, second = ((tmp_path / name / "predictions.jsonl").read_text() for name in ("eval", "again"))
    assert first == second
