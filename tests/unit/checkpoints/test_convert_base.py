"""A base from one disk layout to the other and back: every bit, name, shape and setting returns."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers.base_folders import logits, untie
from helpers.paths import GOLDEN
from helpers.tiny_model import TinySetup
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlavaOnevisionForConditionalGeneration

from pave.cli import main
from pave.models.base import LoadSettings
from pave.models.bases import llava_onevision

OFFICIAL = GOLDEN / "e2e/tiny-llava-onevision-qwen2-ov"
HEADS = "base.vision_heads=4"


def convert(source: Path, out: Path, to: str, *settings: str) -> Path:
    assert main.main(["convert", str(source), str(out), "--to", to, *settings]) == 0
    return out


def fails(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """Exit code 1 and one line."""
    capsys.readouterr()
    assert main.main(["convert", *map(str, argv)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


def tensors(folder: Path) -> dict[str, dict[str, Tensor]]:
    return {file.name: load_file(file) for file in sorted(folder.glob("*.safetensors"))}


def assert_same(one: Path, other: Path) -> None:
    """Same files, same names in them, same bits; same settings and tokenizer."""
    ours, expected = tensors(one), tensors(other)
    assert ours.keys() == expected.keys()
    for file, state in ours.items():
        assert state.keys() == expected[file].keys()
        for name, x in state.items():
            assert x.dtype == expected[file][name].dtype
            assert torch.equal(x.view(torch.uint8), expected[file][name].view(torch.uint8)), name
    for file in one.iterdir():
        if file.suffix in (".json", ".txt"):
            same = file.read_bytes() == (other / file.name).read_bytes()
            assert same or json.loads(file.read_text()) == json.loads((other / file.name).read_text()), file


def test_official_tied_base_there_and_back(tmp_path: Path) -> None:
    hf = convert(OFFICIAL, tmp_path / "hf", "hf", HEADS)
    assert_same(OFFICIAL, convert(hf, tmp_path / "back", "lmms"))
    model, info = LlavaOnevisionForConditionalGeneration.from_pretrained(hf, output_loading_info=True, dtype="auto")
    assert not any(info.values())
    assert model.dtype == torch.bfloat16
    assert model.config.image_token_id == 1003
    assert model.lm_head.weight is model.get_input_embeddings().weight
    ours = llava_onevision.Base.load(str(OFFICIAL), LoadSettings(vision_heads=4)).hf
    assert ours.config.text_config.rope_parameters == model.config.text_config.rope_parameters
    for name, x in ours.state_dict().items():
        assert torch.equal(x, model.state_dict()[name][: len(x)].float()), name
    assert "language_model.model.layers.0.mlp.up_proj.weight" in tensors(hf)["model.safetensors"]
    assert "vision_tower.vision_model.post_layernorm.bias" in tensors(hf)["model.safetensors"]


def test_untied_sharded_base_there_and_back(tiny_setup: TinySetup, tmp_path: Path) -> None:
    lmms = untie(tiny_setup.base, tmp_path / "lmms", scale=2.0)
    hf = convert(lmms, tmp_path / "hf", "hf")
    index = json.loads((hf / "model.safetensors.index.json").read_text())["weight_map"]
    assert index["language_model.lm_head.weight"] in tensors(hf)
    assert torch.equal(logits(llava_onevision.Base.load(str(hf))), logits(llava_onevision.Base.load(str(lmms))))
    assert_same(lmms, convert(hf, tmp_path / "back", "lmms"))


@pytest.mark.parametrize("tied", [True, False])
def test_hub_base_there_and_back(tiny_setup: TinySetup, tmp_path: Path, tied: bool) -> None:
    source = tiny_setup.base if tied else untie(tiny_setup.base, tmp_path / "untied", scale=2.0)
    base = llava_onevision.Base.load(str(source), trim_vocabulary=False)
    hf = LlavaOnevisionForConditionalGeneration(base.hf.config)
    hf.load_state_dict(base.hf.state_dict())
    hub = tmp_path / "hub"
    hf.save_pretrained(hub, save_original_format=True, max_shard_size="40KB")
    base.tokenizer.save_pretrained(hub)
    for file, state in tensors(hub).items():  # as version 4 named them, and so the hub
        state = {name.replace("vision_tower.", "vision_tower.vision_model."): x for name, x in state.items()}
        save_file(state, hub / file, {"format": "pt"})
    file = hub / "model.safetensors.index.json"
    file.write_text(file.read_text().replace("vision_tower.", "vision_tower.vision_model."))
    assert len(tensors(hub)) > 1
    lmms = convert(hub, tmp_path / "lmms", "lmms")
    merged = {name: x for state in tensors(lmms).values() for name, x in state.items()}
    expected = {name: x for state in tensors(source).values() for name, x in state.items()}
    assert merged.keys() == expected.keys()
    assert all(torch.equal(merged[name], x) for name, x in expected.items())
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (source, lmms))
    same = before.keys() - {"mm_newline_position", "bos_token_id", "eos_token_id"}
    assert {key: after[key] for key in same} == {key: before[key] for key in same}
    assert after["mm_newline_position"] == "one_token"
    assert torch.equal(logits(llava_onevision.Base.load(str(lmms))), logits(llava_onevision.Base.load(str(source))))
    assert_same(hub, convert(lmms, tmp_path / "back", "hf"))


def test_files_of_version_5_are_read(tiny_setup: TinySetup, tmp_path: Path) -> None:
    base = llava_onevision.Base.load(str(tiny_setup.base), trim_vocabulary=False)
    base.hf.save_pretrained(tmp_path / "v5", save_original_format=False)
    lmms = convert(tmp_path / "v5", tmp_path / "lmms", "lmms")
    expected = load_file(tiny_setup.base / "model.safetensors")
    assert all(torch.equal(x, expected.pop(name)) for name, x in load_file(lmms / "model.safetensors").items())
    assert not expected


def test_checkpoint_there_and_back_from_the_command_line(tmp_path: Path) -> None:
    ckpt = GOLDEN / "e2e/tiny_pave_v5_1_3_lora"
    ours = convert(ckpt, tmp_path / "ours", "ours", f"base.path={OFFICIAL}", HEADS)
    assert (ours / "pave.yaml").is_file()
    back = convert(ours, tmp_path / "back", "official")
    for file in ("adapter_model.safetensors", "non_lora_trainables.bin"):
        load = load_file if file.endswith("safetensors") else partial(torch.load, weights_only=True)
        one, other = load(ckpt / file), load(back / file)
        assert one.keys() == other.keys()
        assert all(x.dtype == other[name].dtype and torch.equal(x, other[name]) for name, x in one.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.mm_projector.0.weight": None}, "'model.mm_projector.0.weight' is missing"),
        ({"model.extra.weight": torch.zeros(2)}, "'model.extra.weight' is not known"),
        ({"model.image_newline": torch.zeros(3)}, "'model.image_newline' has shape (3,)"),
    ],
)
def test_wrong_tensors_are_named(
    tiny_setup: TinySetup,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Tensor | None],
    message: str,
) -> None:
    source = tmp_path / "base"
    shutil.copytree(tiny_setup.base, source)
    state = {**load_file(source / "model.safetensors"), **change}
    save_file({k: v for k, v in state.items() if v is not None}, source / "model.safetensors")
    assert message in fails(capsys, source, tmp_path / "out", "--to", "hf")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_converted(tiny_setup: TinySetup, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert "is in the lmms layout already" in fails(capsys, tiny_setup.base, out, "--to", "lmms")
    assert "exists already" in fails(capsys, tiny_setup.base, tmp_path, "--to", "hf")
    assert "config.json: no such file" in fails(capsys, tmp_path, out, "--to", "hf")
    assert "pass vision_heads" in fails(capsys, OFFICIAL, out, "--to", "hf")
    source = untie(tiny_setup.base, tmp_path / "base", scale=1.0)
    (source / "model-00002-of-00002.safetensors").write_bytes(b"half")
    assert "not a whole safetensors file" in fails(capsys, source, out, "--to", "hf")
    (source / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors: no such file" in fails(capsys, source, out, "--to", "hf")
    (source / "config.json").write_text('{"model_type": "qwen2"}')
    assert "model_type is 'qwen2'; expected one of llava, llava_onevision" in fails(capsys, source, out, "--to", "hf")
    assert not out.exists()
