"""Tiny versions of the other bases: grafting, saving, lessons; patches before pooling, and carried over."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from experiments import cached_features as kept
from experiments import patch_before_pooling as before_pooling
from experiments.rotate_residual_stream import turn
from helpers.paths import FIXTURES, ROOT
from helpers.tiny_model import make_config, make_data
from safetensors.torch import load_file
from torch import nn

from pave import config as configs
from pave.checkpoints import build, patch_folder
from pave.config import BaseConfig, Config
from pave.data.dataset import QuestionDataset
from pave.models.base import get_base
from pave.models.bases.llava_onevision import Base as LlavaOnevision
from pave.models.patched_model import PatchedModel
from pave.sideworld import scene as world
from pave.tasks import sideworld as task
from pave.training.tiny_models import instruction_tuning, other_bases, vision_distillation
from pave.training.tiny_models.architectures import BASES, TOKEN_ROWS, TinyBase
from pave.training.tiny_models.scenes import FIRST_SEED
from pave.types import UserError


@pytest.fixture(scope="module")
def teacher() -> LlavaOnevision:
    return other_bases.load_teacher()


@pytest.fixture(scope="module", params=list(BASES))
def grafted(request: pytest.FixtureRequest, teacher: LlavaOnevision) -> tuple[str, TinyBase]:
    torch.manual_seed(0)
    small = BASES[request.param]()
    small.base.eval().requires_grad_(False)
    other_bases.copy_language_model(small.base, teacher)
    return request.param, small


def logits(small: TinyBase, base: nn.Module) -> torch.Tensor:
    """At every place of a question about one scene."""
    small = TinyBase(base, small.frames, small.quarters, small.last, small.save)
    [one] = instruction_tuning.encode_scenes(small, 1, FIRST_SEED)
    model = instruction_tuning.Pave(base, {})
    return instruction_tuning.forward_cached(
        model, [one], [instruction_tuning.build_sample(base, one, [one.last], one.plain.float())]
    )[1]


def test_words_mean_what_they_mean_to_the_shipped_base(grafted: tuple[str, TinyBase], teacher: LlavaOnevision) -> None:
    base = grafted[1].base
    mine, old = base.tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
    words, table = base.hf.get_input_embeddings().weight, teacher.hf.get_input_embeddings().weight
    same = [word for word in mine if word in old]
    assert len(same) > 300
    torch.testing.assert_close(words[[mine[w] for w in same]], table[[old[w] for w in same]], rtol=0, atol=0)
    end, says = base.tokenizer.eos_token_id, base.chat("What?", (), "hum").ids
    torch.testing.assert_close(words[end], table[teacher.tokenizer.eos_token_id], rtol=0, atol=0)
    assert end in says
    hum = "hum" if "hum" in mine else "Ġhum"
    torch.testing.assert_close(words[mine[hum]], table[old["hum"]], rtol=0, atol=0)


def test_softening_and_saving_change_no_answer(grafted: tuple[str, TinyBase], tmp_path: Path) -> None:
    name, small = grafted
    before = logits(small, small.base)
    other_bases.scale_residual_stream(small.base.llm, small.last, other_bases.RESIDUAL_SCALE)
    small.save(tmp_path / "base")
    loaded = get_base(name).load(str(tmp_path / "base"))
    after = logits(small, loaded)
    other_bases.scale_residual_stream(small.base.llm, small.last, 1 / other_bases.RESIDUAL_SCALE)
    # Visual tokens go through bfloat16 in both.
    assert (before - after).norm() < 0.03 * before.norm()
    assert torch.equal(before.argmax(-1)[0, -3:], after.argmax(-1)[0, -3:])


def test_turned_it_answers_as_before_in_other_coordinates(grafted: tuple[str, TinyBase]) -> None:
    name, small = grafted
    before = logits(small, small.base)
    state = {name: x.clone() for name, x in small.base.state_dict().items()}
    turn(small.base, small.last)
    after, words = logits(small, small.base), small.base.hf.get_input_embeddings().weight.clone()
    small.base.load_state_dict(state)
    # Visual tokens go through bfloat16 in both.
    assert (before - after).norm() < 0.03 * before.norm()
    old = small.base.hf.get_input_embeddings().weight
    torch.testing.assert_close(words.norm(dim=1), old.norm(dim=1))
    assert torch.cosine_similarity(words, old).abs().mean() < 0.15


def test_a_row_tells_of_four_quarters_every_half_second(grafted: tuple[str, TinyBase], teacher: LlavaOnevision) -> None:
    small = grafted[1]
    pixels, pictures, facts, heights, captions = next(iter(vision_distillation.DistillationStream(small, teacher, 0)))
    rows = vision_distillation.CLIP_FRAMES * TOKEN_ROWS // small.frames
    assert (len(pixels), heights.shape, captions.shape, facts.shape) == (rows, (rows, 2), (rows, 2), (3, 2))
    assert len(pictures) == vision_distillation.CLIP_FRAMES
    seen = small.quarters(vision_distillation.encode_visual_tokens(small.base, pixels[None], "Which sound is heard?"))
    assert seen.shape == (1, rows, 4, 128)


def test_lessons_teach(teacher: LlavaOnevision) -> None:
    """What a few steps of each lesson bring: loss goes down, and only what should learn does."""
    torch.manual_seed(0)
    small = BASES["ppllava"]()
    other_bases.copy_language_model(small.base, teacher)
    before = {name: x.clone() for name, x in small.base.state_dict().items()}
    vision_distillation.train_prompt_relevance(small, 2, 0, batch=2)
    changed = {name for name, x in small.base.state_dict().items() if not torch.equal(x, before[name])}
    assert changed
    assert all("clip_visual" in name or "clip_text_projection" in name for name in changed)
    vision_distillation.distill_vision(small, teacher, 2, 0, batch=2)
    instruction_tuning.instruction_tune(small, 4, 2, 0, batch=2)
    changed = {name for name, x in small.base.state_dict().items() if not torch.equal(x, before[name])}
    assert any(name.startswith("vision_tower.") for name in changed)
    assert any(name.startswith("hf.model.layers.3.") for name in changed)
    found = instruction_tuning.evaluate_tiny(small, 5)
    assert len(found) == 10
    assert set(found.values()) <= {0.0, 1.0}


def test_what_is_sought_is_where_the_thing_is() -> None:
    base = BASES["ppllava"]().base
    chosen = list(vision_distillation.key_frames(8))
    for i, (_, guide, shown) in zip(range(5), vision_distillation.RelevanceStream(base, 8, 0)):
        scene = world.scene(FIRST_SEED + i)
        question = task.scene_questions(scene)[(FIRST_SEED + i) % 5]
        assert guide.tolist()[0] == base.prompt_tokenizer.convert_tokens_to_ids("<|startoftext|>")
        pictures = world.render(scene, chosen).astype(int)
        strange = np.abs(pictures - np.array(scene.background)).sum(-1) > 120
        patches = np.stack(
            [strange[:, int(r * 64 / 6 + 5), :][:, [int(c * 64 / 6 + 5) for c in range(6)]] for r in range(6)], 1
        )
        if question.group in ("which_sound", "who_jumped"):
            assert (shown.view(8, 6, 6).numpy() & patches).sum() > 0.9 * patches.sum()
        else:
            half = shown.view(8, 6, 6).any(0).any(0)
            assert half[:3].any() != half[3:].any()


def test_before_pooling_a_patch_that_adds_nothing_changes_nothing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = BASES["ppllava"]()
    small.save(tmp_path / "base")
    after = get_base("ppllava").load(str(tmp_path / "base"))
    before = get_base("experiments.patch_before_pooling").load(str(tmp_path / "base"))
    assert isinstance(before, before_pooling.Before)
    pixels = after.preprocess(world.render(world.scene(0), range(8)))[None]
    prompt_ids = torch.tensor([after.prompt_tokenizer("Which sound is heard?").input_ids])
    told, pooled = before.encode(pixels, prompt_ids), after.encode(pixels, prompt_ids)
    assert (told.query.shape, pooled.query.shape) == ((1, 4, 72, 96), (1, 4, 4, 96))
    torch.testing.assert_close(
        before.arrange_tokens(told.embeds), after.arrange_tokens(pooled.embeds), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("learns", ["nothing", "output", "all"])
def test_a_carried_patch_learns_its_output_map_at_most(tmp_path: Path, learns: kept.Learns) -> None:
    """On kept features, which give what the tower gave."""
    torch.manual_seed(0)
    BASES["ppllava"]().save(tmp_path / "base")
    config = make_config(tmp_path / "base", make_data(tmp_path / "data", 2, 2))
    base = BaseConfig(name="ppllava", path=str(tmp_path / "base"), frames=4, newline="no_token", dtype="float32")
    config = Config(**{**vars(config), "base": base})
    model = build.create(config)
    nn.init.normal_(model.patches["audio"].out_norm.weight)
    patch_folder.save(model, config, tmp_path / "source")
    [one, *_] = kept.keep(model, config, "test", 1)
    assert one.pixels is not None
    pixels = QuestionDataset(config, model.base, "test", with_answers=True)[0].pixels
    assert pixels is not None
    tower = model.base.vision_tower(pixels[None].unflatten(2, (2, 3)).flatten(1, 2))
    again = kept.Kept()(one.pixels[None].unflatten(2, (2, 3)).flatten(1, 2))
    assert (again - tower).norm() < 0.03 * tower.norm()

    trained: list[PatchedModel] = []
    created = build.create
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(build, "create", lambda config: trained.append(created(config)) or trained[0])
        turned = learns == "output"
        found = kept.main(config, tmp_path / "found.json", learns, tmp_path / "source", turned, clips=2)
    assert {name: len(shares) for name, shares in found.items()} == {"which_sound": 2, "bigger_color": 2, "shuffled": 2}
    assert (tmp_path / "found").is_dir() == (not turned)
    given = load_file(tmp_path / "source/patch.safetensors")
    now = trained[0].patches.state_dict()
    changed = {name.split(".")[1] for name in given if not torch.equal(given[name], now[name])}
    if learns == "all":
        assert {"out", "out_norm", "side_in", "query_in", "layers"} == changed
    else:
        assert changed == (set() if learns == "nothing" else {"out", "out_norm"})
    wide = Config(
        **{**vars(config), "sides": {"audio": configs.PatchConfig(side_dim=12, hidden_dim=32, side_hidden_dim=16)}}
    )
    with pytest.raises(UserError, match="has shape"):
        kept.main(wide, tmp_path / "found2.json", learns, tmp_path / "source")


@pytest.mark.slow
def test_another_base_learns_to_see_and_what_sounds_are(tmp_path: Path) -> None:
    """Video-LLaVA, twice as long as in the documents: the picture and captions tell it, else it must guess."""
    found = other_bases.pretrain(
        "video_llava", tmp_path / "base", other_bases.SCHEDULES["video_llava"]._replace(see=800)
    )
    assert min(found["bigger_color"], found["captioned bigger_color"], found["captioned which_sound"]) >= 0.95
    assert found["shape_of_color"] >= 0.8
    # 50 questions: chance is 1/8, four standard deviations .19.
    assert found["which_sound"] < 0.32
    assert get_base("video_llava").load(str(tmp_path / "base")).num_visual_tokens(16) == 80


@pytest.mark.slow
def test_the_script_goes_through_every_experiment(tmp_path: Path) -> None:
    """On a base that has learnt nothing, three steps: what it writes, not what it finds."""
    torch.manual_seed(0)
    BASES["ppllava"]().save(tmp_path / "base")
    data, tower = str(tmp_path / "data"), "asset:sideworld/audio.safetensors"
    store = ["--videos", f"{data}/videos", "--out", f"{data}/features/audio", "--weights", tower]
    pave, patch = ROOT / ".venv/bin/pave", FIXTURES / "sideworld_audio"
    subprocess.run([pave, "prepare", "sideworld", "--out", data, "--train", "6", "--test", "4"], check=True)
    subprocess.run([pave, "extract", "audio", *store], check=True)
    script = ["bash", ROOT / "scripts/sideworld/bases.sh", "ppllava", tmp_path / "out", "0", "train.max_steps=3"]
    subprocess.run(
        script, check=True, env={**os.environ, "DATA": data, "WEIGHTS": str(tmp_path / "base"), "PATCH": str(patch)}
    )
    assert "| audio questions |" in (tmp_path / "out/report.md").read_text()
    arms = {file.stem: json.loads(file.read_text()) for file in (tmp_path / "out").glob("kept_*.json")}
    assert arms.keys() == {
        f"kept_{arm}" for arm in ("after", "before", "carried", "carried_before", "output", "turned", "turned_output")
    }
    assert all({*found} == {"which_sound", "bigger_color", "shuffled"} for found in arms.values())
