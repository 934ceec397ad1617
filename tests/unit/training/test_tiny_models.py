"""Tiny versions of the bases: copied language models, saving, training; experiments on cached features."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from experiments import cached_features
from experiments.rotate_residual_stream import rotate_residual_stream
from helpers.paths import FIXTURES, ROOT
from helpers.tiny_model import make_config, make_data
from safetensors.torch import load_file
from torch import Tensor, nn

from pave.checkpoints import build, patch_folder
from pave.config import BaseConfig, Config, PatchConfig
from pave.data.dataset import QuestionDataset
from pave.models.base import Base, get_base
from pave.models.bases.llava_onevision import Base as LlavaOnevision
from pave.models.patched_model import PatchedModel
from pave.sideworld import scene as world
from pave.tasks import sideworld as task
from pave.training.tiny_models import instruction_tuning, llava_onevision, other_bases, vision_distillation
from pave.training.tiny_models.architectures import BASES, TOKEN_ROWS, TinyBase
from pave.training.tiny_models.llava_onevision import RESIDUAL_SCALE, scale_residual_stream
from pave.training.tiny_models.scenes import FIRST_SEED
from pave.types import UserError


@pytest.fixture(scope="module")
def teacher() -> LlavaOnevision:
    return other_bases.load_teacher()


@pytest.fixture(scope="module", params=list(BASES))
def tiny(request: pytest.FixtureRequest, teacher: LlavaOnevision) -> TinyBase:
    """Each base with a copy of the teacher's language model."""
    torch.manual_seed(0)
    tiny = BASES[request.param]()
    tiny.base.eval().requires_grad_(False)
    other_bases.copy_language_model(tiny.base, teacher)
    return tiny


def logits(tiny: TinyBase, base: Base) -> Tensor:
    """At every position of a question about one scene."""
    tiny = dataclasses.replace(tiny, base=base)
    [scene] = instruction_tuning.encode_scenes(tiny, 1, FIRST_SEED)
    sample = instruction_tuning.make_sample(tiny, scene, [scene.question], scene.features.plain.float())
    return instruction_tuning.forward_cached(PatchedModel(base, {}), [scene], [sample])[1]


def changed_tensors(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, x in module.state_dict().items() if not torch.equal(x, before[name])}


def test_words_mean_what_they_mean_to_the_shipped_base(tiny: TinyBase, teacher: LlavaOnevision) -> None:
    base = tiny.base
    vocabulary, teacher_vocabulary = base.tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
    actual, expected = base.hf.get_input_embeddings().weight, teacher.hf.get_input_embeddings().weight
    shared = [word for word in vocabulary if word in teacher_vocabulary]
    assert len(shared) > 300
    assert torch.equal(actual[[vocabulary[w] for w in shared]], expected[[teacher_vocabulary[w] for w in shared]])
    assert torch.equal(actual[base.tokenizer.eos_token_id], expected[teacher.tokenizer.eos_token_id])
    assert base.tokenizer.eos_token_id in base.chat("What?", (), "hum").ids
    hum = "hum" if "hum" in vocabulary else "Ġhum"
    assert torch.equal(actual[vocabulary[hum]], expected[teacher_vocabulary["hum"]])


def test_scaling_and_saving_change_no_answer(tiny: TinyBase, tmp_path: Path) -> None:
    expected = logits(tiny, tiny.base)
    scale_residual_stream(tiny.base, tiny.projector_output, RESIDUAL_SCALE)
    tiny.save(tmp_path / "base")
    actual = logits(tiny, get_base(tiny.base.plugin_name()).load(str(tmp_path / "base")))
    scale_residual_stream(tiny.base, tiny.projector_output, 1 / RESIDUAL_SCALE)
    # Visual tokens go through bfloat16 in both.
    assert (expected - actual).norm() < 0.03 * expected.norm()
    assert torch.equal(expected.argmax(-1)[0, -3:], actual.argmax(-1)[0, -3:])


def test_a_rotated_base_answers_as_before_in_other_coordinates(tiny: TinyBase) -> None:
    expected = logits(tiny, tiny.base)
    state = {name: x.clone() for name, x in tiny.base.state_dict().items()}
    rotate_residual_stream(tiny.base, tiny.projector_output)
    actual, rotated = logits(tiny, tiny.base), tiny.base.hf.get_input_embeddings().weight.clone()
    tiny.base.load_state_dict(state)
    # Visual tokens go through bfloat16 in both.
    assert (expected - actual).norm() < 0.03 * expected.norm()
    embeddings = tiny.base.hf.get_input_embeddings().weight
    torch.testing.assert_close(rotated.norm(dim=1), embeddings.norm(dim=1))
    assert torch.cosine_similarity(rotated, embeddings).abs().mean() < 0.15


def test_a_row_tells_of_four_quarters_every_half_second(tiny: TinyBase, teacher: LlavaOnevision) -> None:
    stream = vision_distillation.DistillationStream(tiny, teacher, 0)
    pixels, teacher_pixels, facts, heights, captions = next(iter(stream))
    rows = vision_distillation.CLIP_FRAMES * TOKEN_ROWS // tiny.frames
    assert (len(pixels), heights.shape, captions.shape, facts.shape) == (rows, (rows, 2), (rows, 2), (3, 2))
    assert len(teacher_pixels) == vision_distillation.CLIP_FRAMES
    tokens = vision_distillation.encode_visual_tokens(tiny.base, pixels[None], "Which sound is heard?")
    assert tiny.quarter_tokens(tokens).shape == (1, rows, 4, 128)


def test_each_stage_trains_only_its_part(teacher: LlavaOnevision) -> None:
    torch.manual_seed(0)
    tiny = BASES["ppllava"]()
    other_bases.copy_language_model(tiny.base, teacher)
    before = {name: x.clone() for name, x in tiny.base.state_dict().items()}
    vision_distillation.train_prompt_relevance(tiny, 2, 0, batch=2)
    changed = changed_tensors(tiny.base, before)
    assert changed
    assert all("clip_visual" in name or "clip_text_projection" in name for name in changed)
    vision_distillation.distill_vision(tiny, teacher, 2, 0, batch=2)
    instruction_tuning.instruction_tune(tiny, 4, 2, 0, batch=2)
    changed = changed_tensors(tiny.base, before)
    assert any(name.startswith("vision_tower.") for name in changed)
    assert any(name.startswith("hf.model.layers.3.") for name in changed)
    scores = instruction_tuning.evaluate_tiny(tiny, 5)
    assert len(scores) == 10
    assert set(scores.values()) <= {0.0, 1.0}


def test_the_shipped_base_learns_conversations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step on cached features; the first stage takes longer, and `FrameStream` is that of the other bases."""
    monkeypatch.setattr(llava_onevision, "train_vision", lambda base, steps, seed: None)
    llava_onevision.pretrain(tmp_path / "base", scenes=2, steps=1)
    base = LlavaOnevision.load(str(tmp_path / "base"))
    assert base.hf.model.language_model.norm.weight.mean().item() == pytest.approx(1 / RESIDUAL_SCALE, rel=0.01)
    assert base.num_visual_tokens(16) == 16 * 6


def test_relevant_patches_are_where_the_thing_is() -> None:
    base = BASES["ppllava"]().base
    frames = list(vision_distillation.key_frames(8))
    middles = [int(i * 64 / 6 + 5) for i in range(6)]
    for i, (_, prompt_ids, is_relevant) in zip(range(5), vision_distillation.RelevanceStream(base, 8, 0)):
        scene = world.draw_scene(FIRST_SEED + i)
        question = task.scene_questions(scene)[(FIRST_SEED + i) % 5]
        assert prompt_ids.tolist()[0] == base.prompt_tokenizer.convert_tokens_to_ids("<|startoftext|>")
        grid = is_relevant.view(8, 6, 6).numpy()
        images = world.render(scene, frames).astype(int)
        is_thing = np.abs(images - np.array(scene.background)).sum(-1)[:, middles][:, :, middles] > 120
        if question.group in ("which_sound", "who_jumped"):
            assert (grid & is_thing).sum() > 0.9 * is_thing.sum()
        else:
            columns = grid.any((0, 1))
            assert columns[:3].any() != columns[3:].any()


class CarriedPatch(NamedTuple):
    """A tiny PPLLaVA, and a folder with a patch for it."""

    config: Config
    source: Path


@pytest.fixture(scope="module")
def carried(tmp_path_factory: pytest.TempPathFactory) -> CarriedPatch:
    folder = tmp_path_factory.mktemp("carried")
    torch.manual_seed(0)
    BASES["ppllava"]().save(folder / "base")
    base = BaseConfig(name="ppllava", path=str(folder / "base"), frames=4, newline="no_token", dtype="float32")
    config = dataclasses.replace(make_config(folder / "base", make_data(folder / "data", 2, 2)), base=base)
    model = build.create(config)
    nn.init.normal_(model.patches["audio"].out_norm.weight)
    patch_folder.save(model, config, folder / "source")
    return CarriedPatch(config, folder / "source")


def test_before_pooling_a_patch_that_adds_nothing_changes_nothing(carried: CarriedPatch) -> None:
    path = carried.config.base.path
    after, before = [get_base(name).load(path) for name in ("ppllava", "experiments.patch_before_pooling")]
    pixels = after.preprocess(world.render(world.draw_scene(0), range(8)))[None]
    prompt_ids = torch.tensor([after.chat("Which sound is heard?").prompt_ids])
    unpooled, pooled = before.encode(pixels, prompt_ids), after.encode(pixels, prompt_ids)
    assert (unpooled.query.shape, pooled.query.shape) == ((1, 4, 72, 96), (1, 4, 4, 96))
    actual, expected = before.arrange_tokens(unpooled.embeds), after.arrange_tokens(pooled.embeds)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_cached_features_give_what_the_tower_gave(carried: CarriedPatch) -> None:
    model = build.create(carried.config)
    [sample, *_] = cached_features.cache_features(model, carried.config, "test", 1)
    pixels = QuestionDataset(carried.config, model.base, "test", with_answers=True)[0].pixels
    assert sample.pixels is not None
    assert pixels is not None
    expected = model.base.vision_tower(pixels[None].unflatten(2, (2, 3)).flatten(1, 2))
    actual = cached_features.CachedTower()(sample.pixels[None].unflatten(2, (2, 3)).flatten(1, 2))
    assert (actual - expected).norm() < 0.03 * expected.norm()


@pytest.mark.parametrize(
    ("train_part", "expected"),
    [
        ("nothing", set()),
        ("output", {"out", "out_norm"}),
        ("all", {"out", "out_norm", "side_in", "query_in", "layers"}),
    ],
)
def test_a_carried_patch_trains_the_chosen_part(
    carried: CarriedPatch,
    tmp_path: Path,
    train_part: cached_features.TrainPart,
    expected: set[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models: list[PatchedModel] = []
    create = build.create
    monkeypatch.setattr(build, "create", lambda config: models.append(create(config)) or models[0])
    rotate = train_part == "output"
    scores = cached_features.train_on_cached_features(
        carried.config, tmp_path / "scores.json", train_part, carried.source, rotate, clips=2
    )
    assert {name: len(values) for name, values in scores.items()} == {
        "which_sound": 2,
        "bigger_color": 2,
        "shuffled": 2,
    }
    assert (tmp_path / "scores").is_dir() == (not rotate)
    changed = changed_tensors(models[0].patches, load_file(carried.source / "patch.safetensors"))
    assert {name.split(".")[1] for name in changed} == expected


def test_a_carried_patch_of_another_shape_is_refused(carried: CarriedPatch, tmp_path: Path) -> None:
    wide = {"audio": PatchConfig(side_dim=12, hidden_dim=32, side_hidden_dim=16)}
    config = dataclasses.replace(carried.config, sides=wide)
    with pytest.raises(UserError, match="has shape"):
        cached_features.train_on_cached_features(config, tmp_path / "scores.json", "all", carried.source)


@pytest.mark.slow
def test_the_script_goes_through_every_experiment(tmp_path: Path) -> None:
    """On a base with random weights, three steps: which files it writes."""
    torch.manual_seed(0)
    BASES["ppllava"]().save(tmp_path / "base")
    data, tower = str(tmp_path / "data"), "asset:sideworld/audio.safetensors"
    store = ["--videos", f"{data}/videos", "--out", f"{data}/features/audio", "--weights", tower]
    pave, patch = ROOT / ".venv/bin/pave", FIXTURES / "sideworld_audio"
    subprocess.run([pave, "prepare", "sideworld", "--out", data, "--train", "6", "--test", "4"], check=True)
    subprocess.run([pave, "extract", "audio", *store], check=True)
    script = ["bash", ROOT / "scripts/sideworld/bases.sh", "ppllava", tmp_path / "out", "0", "train.max_steps=3"]
    environment = {**os.environ, "DATA": data, "WEIGHTS": str(tmp_path / "base"), "PATCH": str(patch)}
    subprocess.run(script, check=True, env=environment)
    assert "| audio questions |" in (tmp_path / "out/report.md").read_text()
    names = ("after", "before", "carried", "carried_before", "output", "rotated", "rotated_output")
    for name in names:
        scores = json.loads((tmp_path / f"out/cached_{name}.json").read_text())
        assert scores.keys() == {"which_sound", "bigger_color", "shuffled"}
