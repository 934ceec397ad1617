"""What trains, what a run writes, and that an interrupted run goes on as if nothing had happened."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import fault_injection
from helpers.tiny_model import TinySetup, make_config
from helpers.training_runs import check_same_weights, losses, train_interrupted
from peft import PeftModel

from pave.checkpoints import build, patch_folder
from pave.config import BaseConfig, Config, LoraConfig, PatchConfig
from pave.data.collate import collate
from pave.data.dataset import QuestionDataset
from pave.models import lora
from pave.models.base import LoadSettings
from pave.models.bases import llava_onevision
from pave.models.patched_model import PatchedModel
from pave.tasks import sideworld
from pave.training import mixture, recipe, resume, train
from pave.types import UserError

PROJECTIONS = [f"self_attn.{p}_proj" for p in "qkvo"] + [f"mlp.{p}_proj" for p in ("gate", "up", "down")]


def test_exactly_patch_and_lora_train(tiny_setup: TinySetup) -> None:
    model = build.create(make_config(*tiny_setup))
    actual = {name for name, p in model.named_parameters() if p.requires_grad}
    layer = "base.hf.model.language_model.layers.0."
    expected = {f"{layer}{p}.lora_{x}.default.weight" for p in PROJECTIONS for x in "AB"}
    patch = [f"layers.{i}.{n}" for i in (0, 1) for n in ("q.weight", "q.bias", "k.weight", "k.bias")]
    patch += [f"layers.{i}.{n}" for i in (0, 1) for n in ("norm.weight", "norm.bias", "up.weight", "down.weight")]
    patch += [f"{n}.{x}" for n in ("side_in", "query_in", "out.0", "out.2", "out_norm") for x in ("weight", "bias")]
    assert actual == expected | {f"patches.audio.{n}" for n in patch}


def test_a_fresh_model_is_the_base_bit_for_bit(tiny_setup: TinySetup) -> None:
    config = make_config(*tiny_setup)
    model = build.create(config).eval()
    plain = PatchedModel(llava_onevision.Base.load(str(tiny_setup.base)), {}).eval()
    data = QuestionDataset(config, model.base, "train", with_answers=True)
    batch = collate([data[0], data[1], data[2]], 0)
    with torch.no_grad():
        patched = model(**batch)["logits"]
        alone = plain(**{**batch, "sides": {}})["logits"]
    assert torch.equal(patched, alone)


def test_a_sample_without_the_side_channel_gets_exactly_nothing(tiny_setup: TinySetup) -> None:
    config = make_config(*tiny_setup)
    model = build.create(config).eval()
    torch.nn.init.normal_(model.patches["audio"].out_norm.weight)
    data = QuestionDataset(config, model.base, "train", with_answers=True)
    first, second = data[0], data[5]
    silent = first._replace(sides={"audio": None})
    with torch.no_grad():
        mixed = model.fuse(*visual(collate([silent, second], 0)))
        complete = model.fuse(*visual(collate([first, second], 0)))
        none = model.fuse(*visual(collate([silent], 0)))
        base = model.base.arrange_tokens(model.base.encode(first.pixels[None]).embeds)
    assert torch.equal(mixed[0], base[0])
    assert torch.equal(none, base)
    assert torch.allclose(mixed[1], complete[1], atol=1e-6)
    assert not torch.allclose(mixed[0], complete[0], atol=1e-3)


def visual(batch: dict) -> tuple:
    return batch["pixels"], batch["sides"], batch["frame_seconds"]


def test_logits_only_where_labels_are(tiny_setup: TinySetup) -> None:
    config = make_config(*tiny_setup)
    model = build.create(config).eval()
    batch = collate([QuestionDataset(config, model.base, "train", with_answers=True)[0]], 0)
    out = model(**batch)
    assert out["logits"].shape == ((batch["labels"][:, 1:] != -100).sum(), len(model.base.tokenizer))


@pytest.mark.parametrize("sampling", ["random", "group_by_length"])
def test_resumed_losses_equal_those_of_the_unbroken_run(tiny_setup: TinySetup, tmp_path: Path, sampling: str) -> None:
    config = make_config(*tiny_setup, max_steps=4, train_sampling_strategy=sampling)
    train.main(config, tmp_path / "whole")
    # The same run, stopped in its fourth step: the newest complete checkpoint is that of the second.
    stopped = tmp_path / "stopped"
    train_interrupted(config, stopped, micro_step=7)
    (stopped / "checkpoint-4").mkdir()
    (stopped / "checkpoint-4" / "trainer_state.json").write_text('{"half')
    train.main(config, stopped, resume=True)
    assert losses(stopped) == losses(tmp_path / "whole")
    assert len(losses(stopped)) == 4
    check_same_weights(tmp_path / "whole", stopped)
    assert not list(stopped.glob("**/*.tmp"))


def test_training_changes_patch_and_lora_and_loads_back(tiny_setup: TinySetup, tmp_path: Path) -> None:
    config = make_config(*tiny_setup, gradient_checkpointing=True)
    del config.train["report_to"]
    train.main(config, tmp_path)
    assert list(tmp_path.rglob("events.out.tfevents.*")), "TensorBoard is the default"
    final = tmp_path / "final"
    assert sorted(f.name for f in final.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "patch.safetensors",
        "pave.yaml",
    ]
    model, read = build.load(final)
    assert read == config
    assert model.patches["audio"].out_norm.weight.abs().max() > 0
    adapter = lora.state(model.base.hf)
    assert all(x.abs().max() > 0 for name, x in adapter.items() if "lora_B" in name)
    # The adapter is a plain peft folder: peft alone puts the same weights on the HF model.
    bare = llava_onevision.Base.load(str(tiny_setup.base)).hf
    wrapped = PeftModel.from_pretrained(bare, final)
    named = dict(wrapped.named_parameters())
    for name, x in adapter.items():
        assert torch.equal(named[name.replace(".weight", ".default.weight")], x)


def test_patch_and_lora_have_their_own_rates(tiny_setup: TinySetup, tmp_path: Path) -> None:
    config = make_config(*tiny_setup)
    model = build.create(config)
    groups = train.parameter_groups(config, model, recipe.training_arguments(config, tmp_path))
    assert [g["lr"] for g in groups] == [1e-3, 5e-3]
    counts = [sum(p.numel() for p in g["params"]) for g in groups]
    assert sum(counts) == sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("size", "layers", "lora_parameters", "patch_parameters"),
    [("0.5b", 2, 35_192_832, 6_235_776), ("7b", 2, 161_480_704, 8_996_352), ("7b", 3, 161_480_704, 10_833_920)],
)
def test_published_sizes(size: str, layers: int, lora_parameters: int, patch_parameters: int) -> None:
    base = BaseConfig(path=f"lmms-lab/llava-onevision-qwen2-{size}-ov")
    model = build.create(Config(base=base, sides={"audio": PatchConfig(num_layers=layers)}), weights=False)
    assert sum(p.numel() for n, p in model.named_parameters() if ".lora_" in n) == lora_parameters
    assert sum(p.numel() for p in model.patches.parameters()) == patch_parameters


def test_patch_alone_without_lora(tiny_setup: TinySetup, tmp_path: Path) -> None:
    config = dataclasses.replace(make_config(*tiny_setup, max_steps=1), lora=LoraConfig(r=0))
    train.main(config, tmp_path)
    assert sorted(f.name for f in (tmp_path / "final").iterdir()) == ["patch.safetensors", "pave.yaml"]
    model, _ = build.load(tmp_path / "final")
    assert not lora.names(model.base.hf)


def test_a_half_precision_base_trains_with_float32_patch_and_lora(tiny_setup: TinySetup, tmp_path: Path) -> None:
    config = make_config(*tiny_setup, max_steps=2)
    config = dataclasses.replace(config, base=dataclasses.replace(config.base, dtype="bfloat16"))
    model = build.create(config)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert model.base.hf.dtype == torch.bfloat16
    train.main(config, tmp_path)
    assert all(0 < loss < 10 for loss in losses(tmp_path))


def test_checkpoint_of_another_base_is_refused(tiny_setup: TinySetup, tmp_path: Path) -> None:
    config = make_config(*tiny_setup)
    patch_folder.save(build.create(config), config, tmp_path / "ckpt")
    text = (tmp_path / "ckpt/pave.yaml").read_text()
    (tmp_path / "ckpt/pave.yaml").write_text(text.replace("hidden_dim: 16", "hidden_dim: 32"))
    with pytest.raises(UserError, match=r"has shape .* expected .* another base"):
        build.load(tmp_path / "ckpt")


@pytest.mark.parametrize("whole_step", [True, False])
def test_the_loss_is_the_mean_of_a_steps_label_tokens_or_of_micro_batches(
    tiny_setup: TinySetup, tmp_path: Path, whole_step: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sideworld.Task, "target", fault_injection.target_of_several_lengths)
    config = make_config(*tiny_setup, max_steps=1, average_tokens_across_devices=whole_step)
    config = dataclasses.replace(config, lora=LoraConfig(r=2, dropout=0.0))
    train.main(config, tmp_path)
    model = build.create(config)
    data = QuestionDataset(config, model.base, "train", with_answers=True)
    order = list(mixture.MixtureSampler([len(data)], [len(data)], 42, lambda: 0))
    with torch.no_grad():
        parts = [model(**collate([data[i] for i in order[k : k + 2]], 0)) for k in (0, 2)]
    tokens = [len(part["logits"]) for part in parts]
    assert tokens[0] != tokens[1]
    weights = [n / sum(tokens) for n in tokens] if whole_step else [0.5, 0.5]
    expected = sum(weight * part["loss"].item() for weight, part in zip(weights, parts))
    assert losses(tmp_path) == [pytest.approx(expected, abs=1e-5)]


def test_a_save_over_an_older_one_takes_its_mark_away(tiny_setup: TinySetup, tmp_path: Path) -> None:
    config = make_config(*tiny_setup)
    model = build.create(config)
    data = {"sideworld": QuestionDataset(config, model.base, "train", with_answers=True)}
    trainer = train.PaveTrainer(config, model, recipe.training_arguments(config, tmp_path), data)
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2/trainer_state.json").write_text("{}")
    assert resume.newest_checkpoint(tmp_path).name == "checkpoint-2"
    trainer.save_model(str(tmp_path / "checkpoint-2"))
    with pytest.raises(UserError, match="no finished checkpoint"):
        resume.newest_checkpoint(tmp_path)


@pytest.mark.parametrize(("quantize", "weight_dtype"), [("int8", torch.int8), ("nf4", torch.uint8)])
def test_a_quantized_base_trains(
    tiny_setup: TinySetup, tmp_path: Path, quantize: str, weight_dtype: torch.dtype
) -> None:
    pytest.importorskip("bitsandbytes")
    config = make_config(*tiny_setup, max_steps=2)
    config = dataclasses.replace(config, base=dataclasses.replace(config.base, quantize=quantize, dtype="bfloat16"))
    model = build.create(config)
    assert model.base.llm.layers[0].mlp.up_proj.get_base_layer().weight.dtype == weight_dtype
    assert model.base.hf.model.vision_tower.dtype == model.base.lm_head.weight.dtype == torch.bfloat16
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    train.main(config, tmp_path)
    trained, _ = build.load(tmp_path / "final")
    assert all(x.abs().max() > 0 for name, x in lora.state(trained.base.hf).items() if "lora_B" in name)


def test_a_quantized_base_needs_its_package(tiny_setup: TinySetup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"base\.quantize=nf4: the package bitsandbytes is not installed"):
        llava_onevision.Base.load(str(tiny_setup.base), LoadSettings(quantize="nf4"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"report_to": "wandb2"}, "'wandb2' is not installed"),
        ({"report_to": ["tensorboard", "wandb2"]}, "'wandb2' is not installed"),
        ({"resume_from_checkpoint": "runs/x"}, "give --resume"),
    ],
)
def test_settings_that_would_be_ignored_or_break_later(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        recipe.check_arguments(Config(train=settings))
