"""What official folders may look like: names, adapters of other peft versions, vocabularies, faults, geometry."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from helpers.official_runs import BASE, CONFIG, E2E, audio, check_run, fresh
from helpers.paths import read_json
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from pave.checkpoints import load, official
from pave.checkpoints.archive import checkpoint_folder
from pave.checkpoints.load import fingerprint
from pave.config import BaseConfig, Config
from pave.models import lora
from pave.types import UserError

GIVEN = Config(base=CONFIG)
LORA = "adapter_model.safetensors"
PATCH = "non_lora_trainables.bin"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(E2E / "tiny_pave_v5_1_3_lora", tmp_path / "folder"))


def edit(file: Path, **fields: Any) -> None:
    """Set fields of a JSON file; None takes one out."""
    content = {**read_json(file), **fields}
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def patch_state(folder: Path) -> dict[str, Tensor]:
    return torch.load(folder / PATCH, weights_only=True)


def same_weights(folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """A folder gives the weights of the untouched one, rounded to `dtype`."""
    model, plain = official.load(folder, GIVEN)[0], fresh()
    for name, expected in lora.state(plain.base.hf).items():
        assert torch.equal(lora.state(model.base.hf)[name], expected.to(dtype).float()), name
    for name, expected in plain.patches.state_dict().items():
        assert torch.equal(model.patches.state_dict()[name], expected), name


@pytest.mark.parametrize("fields", [{"temporal_aggregator_type": "ssmv5"}, {"model_type": "vidit_qwen2"}, {"new": [1]}])
def test_other_words_for_the_same_model(folder: Path, fields: dict[str, Any]) -> None:
    edit(folder / "config.json", **fields)
    same_weights(folder)


@pytest.mark.parametrize("prefix", ["base_model.model.model.", "base_model.model.", "model.model.", "model."])
def test_prefixes_of_patch_names(folder: Path, prefix: str) -> None:
    state = patch_state(folder)
    torch.save({name.replace("base_model.model.model.", prefix): x for name, x in state.items()}, folder / PATCH)
    same_weights(folder)


def test_lora_as_a_raw_state(folder: Path) -> None:
    state = load_file(folder / LORA)
    raw = {name.replace(".weight", ".default.weight").removeprefix("base_model.model."): x for name, x in state.items()}
    save_file(raw, folder / LORA)
    same_weights(folder)


def test_lora_in_a_pickle(folder: Path) -> None:
    torch.save(load_file(folder / LORA), folder / "adapter_model.bin")
    (folder / LORA).unlink()
    same_weights(folder)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lora_in_half_precision(folder: Path, dtype: torch.dtype) -> None:
    save_file({name: x.to(dtype) for name, x in load_file(folder / LORA).items()}, folder / LORA)
    same_weights(folder, dtype)


def test_settings_that_peft_adds_later(folder: Path) -> None:
    edit(folder / "adapter_config.json", eva_config=None, lora_bias=False, exclude_modules=[], qalora_group_size=16)
    same_weights(folder)


def test_lora_written_by_the_installed_peft(folder: Path) -> None:
    """The LLM under its own name, as in the official class, through today's save_pretrained."""
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    text = read_json(Path(BASE) / "config.json")
    model = peft.get_peft_model(
        Qwen2ForCausalLM(Qwen2Config(vocab_size=1004, **{key: text[key] for key in keys})),
        peft.LoraConfig(r=8, lora_alpha=16, lora_dropout=0.05, target_modules=r".*_proj", task_type="CAUSAL_LM"),
    )
    official_state = load_file(folder / LORA)
    peft.set_peft_model_state_dict(model, official_state)
    for file in folder.glob("adapter*"):
        file.unlink()
    model.save_pretrained(folder)
    assert load_file(folder / LORA).keys() == official_state.keys()
    same_weights(folder)


@pytest.mark.parametrize("rows", [1004, 1024])
def test_own_head_and_any_padding_of_the_vocabulary(tmp_path: Path, rows: int) -> None:
    """An untied base, its embedding padded or cut to the tokenizer: the same numbers as with the tied one."""
    base = Path(shutil.copytree(BASE, tmp_path / "base"))
    state = load_file(base / "model.safetensors")
    state["model.embed_tokens.weight"] = state["model.embed_tokens.weight"][:rows].clone()
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    save_file(state, base / "model.safetensors", {"format": "pt"})
    edit(base / "config.json", tie_word_embeddings=False, vocab_size=rows)
    model = fresh(path=str(base))
    assert model.base.lm_head.weight.shape[0] == model.base.hf.get_input_embeddings().num_embeddings == 1004
    assert model.base.lm_head.weight.data_ptr() != model.base.hf.get_input_embeddings().weight.data_ptr()
    check_run(model, "b_pave", audio("audio/vid_a"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_copy_of_the_vocabulary_beside_lora(folder: Path, dtype: torch.dtype) -> None:
    """peft adds embedding and head where the vocabulary was resized; they are accepted if they are the base's."""
    embedding = fresh().base.hf.get_input_embeddings().weight.detach()
    state = load_file(folder / LORA)
    names = ("base_model.model.model.embed_tokens.weight", "base_model.model.lm_head.weight")
    padded = torch.cat([embedding, torch.zeros(20, 128)]).to(dtype)
    save_file({**state, names[0]: padded, names[1]: embedding.to(dtype)}, folder / LORA)
    same_weights(folder)
    for name, wrong in ((names[0], embedding[:-1]), (names[1], embedding * 1.01)):
        save_file({**state, name: wrong.to(dtype).contiguous()}, folder / LORA)
        with pytest.raises(UserError, match=rf"'{re.escape(name)}' .* is not the base's \(1004, 128\)"):
            official.load(folder, GIVEN)


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        (
            "config.json",
            {"temporal_aggregator_type": "perceiver"},
            "temporal_aggregator_type.* are perceiver, add, grid",
        ),
        ("config.json", {"feat_combine_method": "concat"}, "are pmv5, concat, grid"),
        ("config.json", {"mm_newline_position": "rows"}, "are pmv5, add, rows"),
        ("adapter_config.json", {"use_rslora": True}, "use_rslora is set; expected plain LoRA"),
        ("adapter_config.json", {"alpha_pattern": {"q_proj": 3}}, "alpha_pattern is set"),
        ("adapter_config.json", {"bias": "all"}, "bias is set"),
        ("adapter_config.json", {"lora_alpha": None}, "has no 'lora_alpha'"),
        (
            "adapter_config.json",
            {"r": 4},
            r"layers.0.mlp.down_proj.lora_A.weight' has shape \(8, 256\), expected \(4, 256\)",
        ),
    ],
)
def test_settings_that_do_not_fit_are_named(folder: Path, file: str, fields: dict[str, Any], message: str) -> None:
    edit(folder / file, **fields)
    with pytest.raises(UserError, match=message):
        official.load(folder, GIVEN)


@pytest.mark.parametrize("name", ["config.json", "adapter_config.json", LORA])
def test_missing_files_are_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(UserError, match=rf"{name}: no such file"):
        official.load(folder, GIVEN)


def test_a_broken_config_is_named(folder: Path) -> None:
    for text, message in (("{", "not valid JSON"), ("[]", "holds a list")):
        (folder / "config.json").write_text(text)
        with pytest.raises(UserError, match=rf"config.json: {message}"):
            official.load(folder, GIVEN)


def test_wrong_tensors_are_named(folder: Path) -> None:
    state, name = patch_state(folder), "base_model.model.model.temporal_aggregator."
    for wrong, message in (
        ({k: v for k, v in state.items() if not k.endswith("output_norm.weight")}, "'.*output_norm.weight' is missing"),
        ({k: v for k, v in state.items() if not k.endswith("output_norm.bias")}, "'output_norm.bias' is missing"),
        ({k: v for k, v in state.items() if ".input_mapping." not in k}, "'input_mapping.weight' is missing"),
        ({k: v for k, v in state.items() if "layers.0." not in k}, "'cross_attn_layers.0.*' is missing"),
        (
            {**state, "model.mm_projector.0.weight": torch.zeros(1)},
            "'model.mm_projector.0.weight' is not part of a patch",
        ),
        (
            {**state, f"{name}output_norm.weight": torch.zeros(3)},
            r"'.*output_norm.weight' has shape \(3,\), expected \(128,",
        ),
        ({**state, f"{name}extra": torch.zeros(3)}, "'temporal_aggregator.extra' is not known"),
        ({}, "no tensor of a patch"),
        ([1], "not a dictionary of tensors"),
    ):
        torch.save(wrong, folder / PATCH)
        with pytest.raises(UserError, match=rf"{PATCH}: .*{message}"):
            official.load(folder, GIVEN)


@pytest.mark.parametrize("change", ["missing", "extra"])
def test_wrong_lora_is_named(folder: Path, change: str) -> None:
    state, name = load_file(folder / LORA), "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
    if change == "missing":
        del state[name]
    else:
        name = "base_model.model.model.norm.weight"
        state[name] = torch.zeros(2, 2)
    save_file(state, folder / LORA)
    with pytest.raises(
        UserError, match=rf"{LORA}: tensor '{re.escape(name)}' is {'missing' if change == 'missing' else 'not known'}"
    ):
        official.load(folder, GIVEN)


def test_the_base_follows_from_the_width(folder: Path) -> None:
    default = Config()
    state = {name.partition("temporal_aggregator.")[2]: x for name, x in patch_state(folder).items()}
    with pytest.raises(UserError, match=r"a base 128 wide, and no published one is; give base\.path="):
        official.read_official(folder, default)
    for width, size in ((896, "0.5b"), (3584, "7b")):
        wide = {**state, "output_norm.bias": torch.zeros(width)}
        torch.save({f"model.temporal_aggregator.{name}": x for name, x in wide.items()}, folder / PATCH)
        assert official.read_official(folder, default).config.base.path == f"lmms-lab/llava-onevision-qwen2-{size}-ov"
        assert official.read_official(folder, GIVEN).config.base.path == BASE
    edit(folder / "config.json", mm_newline_position="frame")
    assert official.read_official(folder, default).config.base == dataclasses.replace(
        BaseConfig(), path="lmms-lab/llava-onevision-qwen2-7b-ov", newline="frame"
    )


def test_the_base_alone(folder: Path) -> None:
    edit(folder / "config.json", mm_newline_position="frame")
    overrides = ["base.vision_heads=4", "base.dtype=float32"]
    model, config = load.load_model(folder, BASE, overrides, base_only=True, device="cpu")
    assert not model.patches
    assert not lora.names(model.base.hf)
    assert (config.base.path, config.base.newline, model.base.newline) == (BASE, "frame", "frame")


RECIPE = """
base: {frames: 4, dtype: float32, vision_heads: 4}
sides: {sound: {side: audio, features: features/audio}}
data: {task: avsd, root: somewhere, eval_split: test}
"""


def test_a_recipe_says_what_an_official_folder_does_not(folder: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    model, config = load.load_model(folder, BASE, ["data.root=here"], device="cpu", recipe=recipe)
    assert list(model.patches) == list(config.sides) == ["sound"]
    assert (config.data.task, config.data.root, config.base.path) == ("avsd", "here", BASE)
    assert torch.equal(model.patches["sound"].out_norm.weight, fresh().patches["audio"].out_norm.weight)


def test_a_zip_is_unpacked_beside_itself_once(folder: Path, tmp_path: Path) -> None:
    archive = tmp_path / "official.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for file in folder.iterdir():
            packed.write(file, f"some/folder/{file.name}")
    overrides = ["base.vision_heads=4", "base.dtype=float32", "sides.audio.rope=false"]
    model, _ = load.load_model(archive, BASE, overrides, device="cpu")
    assert fingerprint(model) == fingerprint(fresh())
    archive.unlink()
    archive.write_bytes(b"")
    assert checkpoint_folder(archive) == tmp_path / "official"


def test_a_zip_without_a_checkpoint_is_named(tmp_path: Path) -> None:
    archive = tmp_path / "empty.zip"
    with pytest.raises(UserError, match=r"empty\.zip: no such file"):
        checkpoint_folder(archive)
    zipfile.ZipFile(archive, "w").close()
    with pytest.raises(UserError, match=r"empty\.zip: has 0 folders with"):
        checkpoint_folder(archive)
    assert not (tmp_path / "empty").exists()
