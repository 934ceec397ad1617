"""Video-Panda as a base: the public class's tokens and a Llama's logits, patches, pictures of two shapes, errors."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_model
from helpers.media_files import write_clip
from helpers.panda_folder import FRAMES, GOLDENS, SIZE
from helpers.tiny_bases import LAYERS, randomise
from helpers.tiny_model import TinySetup
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close
from transformers import LlamaForCausalLM

from pave import config as configs
from pave.checkpoints import build, patch_folder
from pave.config import BaseConfig, Config, DataConfig, LoraConfig, PatchConfig
from pave.data.collate import collate
from pave.data.dataset import key_frames, make_sample
from pave.inference import generation as answer
from pave.media.video import read_clip
from pave.models import lora
from pave.models.bases import video_panda
from pave.models.bases._loading import Settings
from pave.models.patched_model import Pave
from pave.training import train
from pave.types import IGNORE, VIDEO, Clip, SideTokens, UserError

SOURCE, WANTED = np.load(GOLDENS / "preprocess.npz")["square_60x60/source"], np.load(GOLDENS / "tower.npz")
SQUARE, WIDE = (60, 60), (45, 80)
PER_FRAME = {SQUARE: 1 + 4 * 5, WIDE: 1 + 3 * 5}


def make_config(folder: Path) -> Config:
    return Config(
        base=BaseConfig(name="video_panda", path=str(folder), frames=FRAMES, newline="no_token", dtype="float32"),
        sides={"audio": PatchConfig(side_dim=12, hidden_dim=16, side_hidden_dim=16)},
        lora=LoraConfig(r=2, alpha=4, dropout=0.0),
        data=DataConfig(max_length=512),
    )


def make_batch(
    config: Config, base: Any, said: str | None = "a dog barks", shapes: tuple[tuple[int, int], ...] = (SQUARE, WIDE)
) -> dict[str, Any]:
    """A video of noise for each shape; only the first is silent."""
    rng, samples = np.random.default_rng(0), []
    for i, shape in enumerate(shapes):
        clip = Clip(rng.integers(0, 256, (FRAMES, *shape, 3), np.uint8), np.arange(FRAMES) / 2)
        side = SideTokens(torch.randn(6, 1, 12, generator=torch.Generator().manual_seed(i))) if i else None
        samples.append(make_sample(config, base, f"what is heard{' a' * i}?", clip, {"audio": side}, answer=said))
    return collate(samples, base.tokenizer.pad_token_id, left=said is None)


def test_frames_by_the_published_rule(folder: Path, tmp_path: Path) -> None:
    """One a second of 60 at 25 a second are three, so there are 8 at steps of 8; in a process of its own, too."""
    config = make_config(folder)
    base = build.load_base(config.base)
    frames = key_frames(dataclasses.replace(config.base, frame_sampling="native"), base)
    path = write_clip(tmp_path / "a.mp4")
    want = np.arange(8) * 8 / 25
    np.testing.assert_allclose(read_clip(path, frames).seconds, want)
    np.testing.assert_allclose(read_clip(path, pickle.loads(pickle.dumps(frames))).seconds, want)
    assert len(read_clip(path, key_frames(config.base, base)).seconds) == FRAMES


@torch.no_grad()
def test_tokens_are_those_of_the_public_class(folder: Path) -> None:
    base = build.load_base(make_config(folder).base)
    seen = base.encode(base.preprocess(SOURCE)[None])
    rows = FRAMES * PER_FRAME[SQUARE]
    for found, name, step in ((seen.query, "tokens", 5), (seen.embeds, "projected", 8)):
        wanted = torch.from_numpy(WANTED[f"square_60x60/{name}"])[: len(range(0, rows, step))]
        assert_close(found[0].flatten(0, 1)[::step], wanted, atol=5e-5, rtol=0)
    assert base.layout(seen.embeds).shape == (1, rows, 80)
    assert base.visual_tokens(FRAMES, (SIZE, SIZE)) == rows


@torch.no_grad()
@pytest.mark.parametrize("shapes", [(SQUARE, SQUARE), (SQUARE, WIDE)])
def test_logits_are_those_of_the_llama(folder: Path, shapes: tuple[tuple[int, int], ...]) -> None:
    config = make_config(folder)
    base = build.load_base(config.base)
    batch = make_batch(config, base, shapes=shapes)
    places = batch["ids"] == VIDEO
    assert places.sum(1).tolist() == [FRAMES * PER_FRAME[shape] for shape in shapes]
    llm = LlamaForCausalLM(base.hf.config).eval()
    state = load_file(folder / "model.safetensors")
    llm.load_state_dict({name: x for name, x in state.items() if name in llm.state_dict()})
    embeds = llm.get_input_embeddings()(batch["ids"].clamp(min=0))
    for row, pixels in enumerate(batch["pixels"]):
        embeds[row, places[row]] = base.encode(pixels[None]).embeds[0].flatten(0, 1)
    want = llm(inputs_embeds=embeds, attention_mask=batch["mask"]).logits
    ours = Pave(base, {}).splice(batch["ids"], batch["pixels"], {})
    found = base.head(base.lm(inputs_embeds=ours, attention_mask=batch["mask"]).last_hidden_state)
    if isinstance(batch["pixels"], list):
        assert torch.equal(found, want)
    else:  # encoded in one batch here, one by one there
        assert_close(found, want, atol=1e-5, rtol=0)


def test_fresh_patch_changes_no_bit_and_only_patch_and_lora_learn(folder: Path) -> None:
    config = make_config(folder)
    model = build.create(config).eval()
    batch = make_batch(config, model.base)
    everywhere = {**batch, "labels": torch.where(batch["mask"], batch["ids"].clamp(min=0), IGNORE)}
    with torch.no_grad():
        alone = Pave(build.load_base(config.base), {})(**{**everywhere, "sides": {}})["logits"]
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


@torch.no_grad()
def test_training_leaves_the_tower_as_it_is(folder: Path) -> None:
    base = build.load_base(make_config(folder).base)
    before = {name: x.clone() for name, x in base.vision_tower.state_dict().items()}
    pixels = base.preprocess(SOURCE)[None]
    wanted = base.encode(pixels).query
    assert torch.equal(base.train().encode(pixels).query, wanted)  # no dropout
    assert base.hf.training
    assert all(torch.equal(x, before[name]) for name, x in base.vision_tower.state_dict().items())  # nor new statistics


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


def test_questions_about_videos_of_two_shapes_share_beginnings(folder: Path) -> None:
    config = make_config(folder)
    model = build.create(config).eval()
    randomise(model.patches.parameters())
    asked = []
    for shape in (SQUARE, WIDE):
        clip = Clip(np.random.default_rng(3).integers(0, 256, (FRAMES, *shape, 3), np.uint8), np.arange(FRAMES) / 2)
        texts = ("what is heard?", "what is a dog?")
        samples = [make_sample(config, model.base, t, clip, {"audio": SideTokens(torch.ones(4, 1, 12))}) for t in texts]
        asked.append(answer.Asked(samples[0], [s.ids for s in samples]))
    how = answer.decoding(model, 5)
    for found, (sample, prompts) in zip(answer.answers(model, asked, how, 4), asked):
        for tokens, ids in zip(found, prompts):
            batch = collate([sample._replace(ids=ids, labels=[IGNORE] * len(ids))], 0, left=True)
            del batch["labels"]
            assert tokens == answer._until_end(model.generate(**batch, max_new_tokens=5)[0].tolist(), how.end)


def test_it_trains(folder: Path, tiny_setup: TinySetup, tmp_path: Path) -> None:
    ours = make_config(folder)
    config = dataclasses.replace(tiny_model.make_config(folder, tiny_setup.data, max_steps=2), base=ours.base)
    train.main(config, tmp_path)
    trained, _ = build.load(tmp_path / "final", [])
    before, after = build.create(config).patches.parameters(), trained.patches.parameters()
    assert any(not torch.equal(a, b) for a, b in zip(before, after))


def test_prompt_is_that_of_the_published_code(folder: Path) -> None:
    base = video_panda.load(str(folder))
    system = "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
    system += "detailed, and polite answers to the human's questions."
    around = (f"{system} USER: ", "\nwhat is heard? ASSISTANT: a dog</s>USER: and a human? ASSISTANT:")
    before, after = (base.tokenizer(part, add_special_tokens=False).input_ids for part in around)
    assert base.chat("and a human?", (("what is heard?", "a dog"),)).ids == [1, *before, VIDEO, *after]
    with pytest.raises(UserError, match="is for LLaVA-OneVision"):
        base.chat("what is heard?", (), "a dog", "official")


def test_wrong_settings_and_folders_are_answered(folder: Path, tmp_path: Path) -> None:
    for settings, message in (({"newline": "grid"}, "base.newline=no_token"), ({"pool": "max"}, "base.pool=max")):
        with pytest.raises(UserError, match=message):
            video_panda.load(str(folder), Settings(**settings))
    base = video_panda.load(str(folder))
    for frames, size, message in (
        (6, (SIZE, SIZE), "sees 4 frames at once; set base.frames=8"),
        (32, (SIZE, SIZE), "672 visual tokens, the LLM has 512 places"),
        (8, (21, 144), "stored video tokens do not tell"),
    ):
        with pytest.raises(UserError, match=message):
            base.visual_tokens(frames, size)
    for told in ({}, {"video_hidden_size": 64, "mm_use_im_start_end": True}):
        (tmp_path / "config.json").write_text(json.dumps(told))
        with pytest.raises(UserError, match="expected a Video-Panda checkpoint"):
            video_panda.load(str(tmp_path))


@pytest.mark.parametrize(
    ("gone", "added", "message"),
    [
        ("model.{}_projector.0.bias", {}, "missing, such as 0.bias"),
        ("model.layers.0.mlp.up_proj.weight", {}, "up_proj"),
        ("model.{}_tower.balance", {}, "missing, such as balance"),
        ("", {"model.extra": torch.zeros(1)}, "model.extra"),
    ],
)
def test_wrong_tensors_are_named(
    folder: Path, tmp_path: Path, gone: str, added: dict[str, Tensor], message: str
) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    lost = {gone.format(kind) for kind in ("video", "vision", "mm")}
    state = {name: x for name, x in load_file(tmp_path / "model.safetensors").items() if name not in lost}
    save_file({**state, **added}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=message) as caught:
        video_panda.load(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_published_size_needs_no_files(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    path = video_panda.PUBLISHED
    file.write_text(
        f"base: {{name: video_panda, path: {path}, frames: 8, newline: no_token}}\nsides: {{audio: {{}}}}\n"
    )
    base = build.create(configs.load(file), weights=False).base
    tower, projector = (
        sum(p.numel() for p in part.parameters()) for part in (base.vision_tower, base.multi_modal_projector)
    )
    assert (tower, projector, tower + projector) == (24_086_866, 20_979_712, 45_066_578)
    assert [base.visual_tokens(8, size) for size in ((448, 448), (252, 448))] == [8 * 273, 8 * 154]
    frames = np.zeros((8, 1080, 1920, 3), np.uint8)
    seen = base.encode(torch.empty_like(base.preprocess(frames)[None], device="meta"))
    assert (seen.query.shape, seen.embeds.shape) == ((1, 8, 154, 1024), (1, 8, 154, 4096))


def test_folder_without_weights_has_the_same_shapes(folder: Path) -> None:
    there, skeleton = video_panda.load(str(folder)), video_panda.load(str(folder), weights=False)
    assert {n: x.shape for n, x in there.state_dict().items()} == {n: x.shape for n, x in skeleton.state_dict().items()}
    assert all(x.is_meta for x in skeleton.parameters())
