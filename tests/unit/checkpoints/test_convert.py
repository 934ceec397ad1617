"""Official folder -> ours -> official and back: not one bit of a tensor changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from helpers.official_runs import BASE, CONFIG, E2E, audio, check_run
from helpers.official_runs_two_sides import BOTH, SIDES, put_together
from helpers.paths import read_json
from helpers.tiny_model import TinySetup, make_config
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from pave.checkpoints import build, convert, official, patch_folder
from pave.config import Config, LoraConfig, PatchConfig
from pave.types import UserError

FOLDERS = {
    "tiny_pave_v5_1_3_lora": torch.float32,
    "tiny_pave_v5_1_3_lora_trained": torch.bfloat16,
    "tiny_pave_v5_1_3_adaptor": torch.float32,
    "multi": torch.float32,
}


@pytest.fixture(scope="module")
def find(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    multi = put_together(tmp_path_factory.mktemp("multi"))
    return lambda name: multi if name == "multi" else E2E / name


def settings_for(name: str) -> Config:
    return Config(base=CONFIG, sides=SIDES if name == "multi" else {})


def tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder in either layout."""
    actual: dict[str, Tensor] = {}
    for file in folder.iterdir():
        if file.suffix == ".bin":
            actual |= torch.load(file, weights_only=True)
        elif file.suffix == ".safetensors":
            actual |= load_file(file)
    return actual


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, x in one.items():
        assert x.dtype == other[name].dtype, name
        assert torch.equal(x, other[name]), name


@pytest.mark.parametrize("name", FOLDERS)
def test_official_to_ours_and_back(find: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    source, ours, back = find(name), tmp_path / "ours", tmp_path / "back"
    convert.to_ours(source, settings_for(name), ours)
    convert.to_official(ours, back)
    same(tensors(source), tensors(back))
    assert {x.dtype for x in tensors(ours).values()} == {FOLDERS[name]}
    assert {file.name for file in back.iterdir()} == {file.name for file in source.iterdir()}
    written = read_json(back / "config.json")
    # The base may be elsewhere; a skeleton's vocabulary is not cut; the others differ within the release, too.
    free = {"_name_or_path", "vocab_size", "temporal_aggregator2_type", "tune_temporal_aggregator"}
    stored = read_json(source / "config.json")
    assert {key: value for key, value in written.items() if key not in free} == {
        key: stored[key] for key in written if key not in free
    }
    if (source / "adapter_config.json").is_file():
        written, stored = read_json(back / "adapter_config.json"), read_json(source / "adapter_config.json")
        assert written.pop("base_model_name_or_path") == BASE
        assert {key: stored[key] for key in written} == written
    # The patch file keeps its order too.
    patch = next(name for name in official.PATCH_FILES if (source / name).is_file())
    assert list(torch.load(back / patch, weights_only=True)) == list(torch.load(source / patch, weights_only=True))


@pytest.mark.parametrize("name", FOLDERS)
def test_ours_is_the_same_model(find: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    convert.to_ours(find(name), settings_for(name), tmp_path / "ours")
    model, config = build.load(tmp_path / "ours")
    expected, expected_config = official.load(find(name), settings_for(name))
    assert config == expected_config
    same(dict(expected.state_dict()), dict(model.state_dict()))


def test_converted_folders_give_the_official_numbers(find: Callable[[str], Path], tmp_path: Path) -> None:
    convert.to_ours(find("multi"), settings_for("multi"), tmp_path / "ours")
    check_run(build.load(tmp_path / "ours")[0], "f_multi_b1", BOTH)
    convert.to_official(tmp_path / "ours", tmp_path / "official")
    check_run(official.load(tmp_path / "official", settings_for("multi"))[0], "f_multi_b1", BOTH)


def test_a_model_saved_as_official_equals_the_official_file(tmp_path: Path) -> None:
    name = "tiny_pave_v5_1_3_lora"
    model, config = official.load(E2E / name, Config(base=CONFIG))
    official.save(model, config, tmp_path / "saved")
    same(tensors(E2E / name), tensors(tmp_path / "saved"))
    assert read_json(tmp_path / "saved/config.json")["vocab_size"] == 1004
    check_run(official.load(tmp_path / "saved", Config(base=CONFIG))[0], "b_pave", audio("audio/vid_a"))


def test_peft_reads_the_written_adapter(tmp_path: Path) -> None:
    """As the official code does: peft on a class that calls the LLM's layers `model.layers`."""
    official.save(*official.load(E2E / "tiny_pave_v5_1_3_lora", Config(base=CONFIG)), tmp_path / "saved")
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    text = read_json(tmp_path / "saved/config.json")
    plain = Qwen2ForCausalLM(Qwen2Config(vocab_size=text["vocab_size"], **{key: text[key] for key in keys}))
    model = peft.PeftModel.from_pretrained(plain, tmp_path / "saved")
    assert model.peft_config["default"].lora_alpha == 16
    loaded = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    same(loaded, load_file(E2E / "tiny_pave_v5_1_3_lora/adapter_model.safetensors"))


OURS: dict[str, dict[str, Any]] = {
    "plain": {},
    "deep": {"num_layers": 3, "heads": 2},
    "rope": {"hidden_dim": 256, "heads": 2, "rope": True},
    "conv": {"conv_blocks": [1, 2], "conv_strides": [1, 2], "conv_scales": [1, 2]},
    "queries": {"queries": [4, 1]},
}


def write_ours(tiny_setup: TinySetup, folder: Path, dtype: torch.dtype, **geometry: Any) -> Config:
    """A folder of ours with random numbers in every tensor; returns the config that no official folder tells."""
    config = make_config(tiny_setup.base, tiny_setup.data)
    side = dataclasses.replace(config.sides["audio"], **geometry)
    model = build.create(dataclasses.replace(config, sides={"audio": side}))
    for parameter in (p for n, p in model.named_parameters() if n.startswith("patches") or "lora_" in n):
        parameter.data = torch.randn_like(parameter).to(dtype)
    patch_folder.save(model, dataclasses.replace(config, sides={"audio": side}), folder)
    # With rope the heads follow from the width.
    untold = ("rope", "conv_strides") if side.rope else ("heads", "conv_strides")
    rest = PatchConfig(features=side.features, **{key: geometry[key] for key in untold if key in geometry})
    return dataclasses.replace(config, sides={"audio": rest}, lora=LoraConfig())


@pytest.mark.parametrize(("name", "dtype"), [(n, torch.float32) for n in OURS] + [("plain", torch.bfloat16)])
def test_ours_to_official_and_back(tiny_setup: TinySetup, tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    rest = write_ours(tiny_setup, tmp_path / "ours", dtype, **OURS[name])
    convert.to_official(tmp_path / "ours", tmp_path / "official")
    convert.to_ours(tmp_path / "official", rest, tmp_path / "back")
    same(tensors(tmp_path / "ours"), tensors(tmp_path / "back"))
    assert patch_folder.read_config(tmp_path / "back") == patch_folder.read_config(tmp_path / "ours")
    one, other = (read_json(tmp_path / f"{n}/adapter_config.json") for n in ("ours", "back"))
    assert one == other


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value_projection": "separate"}, "sides.audio.value_projection is separate; .* knows only shared"),
        ({"neighborhood": "global"}, "sides.audio.neighborhood is global; .*only chunks"),
        ({"weight": 0.5}, "sides.audio.weight is 0.5; .*only 1.0"),
    ],
)
def test_what_the_official_code_cannot_do(
    tiny_setup: TinySetup, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    write_ours(tiny_setup, tmp_path / "ours", torch.float32, **changes)
    with pytest.raises(UserError, match=message):
        convert.to_official(tmp_path / "ours", tmp_path / "official")
    assert [file.name for file in tmp_path.iterdir()] == ["ours"]


def test_patches_that_the_official_code_cannot_hold(tiny_setup: TinySetup, tmp_path: Path) -> None:
    config = make_config(tiny_setup.base, tiny_setup.data)
    side = config.sides["audio"]
    for sides, message in (
        ({"a": side, "b": side, "c": side}, "3 patches, the official layout holds one or two"),
        ({}, "0 patches"),
        (
            {"a": side, "b": dataclasses.replace(side, num_layers=3)},
            "different num_layers; .* builds the second as the first",
        ),
    ):
        chosen = dataclasses.replace(config, sides=sides)
        with pytest.raises(UserError, match=message):
            official.save(build.create(chosen, weights=False), chosen, tmp_path / "out")


@pytest.mark.parametrize("file", ["patch.safetensors", "adapter_model.safetensors"])
def test_a_tensor_that_ours_lacks_is_named(tiny_setup: TinySetup, tmp_path: Path, file: str) -> None:
    write_ours(tiny_setup, tmp_path / "ours", torch.float32)
    state = load_file(tmp_path / "ours" / file)
    name = min(state)
    del state[name]
    save_file(state, tmp_path / "ours" / file)
    with pytest.raises(UserError, match=rf"{file}: tensor '{name}' is missing"):
        convert.to_official(tmp_path / "ours", tmp_path / "official")
    assert not (tmp_path / "official").exists()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for call in (
        lambda: convert.to_ours(E2E / "tiny_pave_v5_1_3_adaptor", Config(base=CONFIG), tmp_path / "there"),
        lambda: convert.to_official(tmp_path, tmp_path / "there"),
    ):
        with pytest.raises(UserError, match="there: exists; give the name of a new folder"):
            call()


def test_a_wrong_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config.json: no such file; expected a file of an official folder"):
        convert.to_ours(tmp_path, Config(), tmp_path / "out")
    with pytest.raises(UserError, match=r"no pave.yaml in it"):
        convert.to_official(E2E / "tiny_pave_v5_1_3_lora", tmp_path / "out")
