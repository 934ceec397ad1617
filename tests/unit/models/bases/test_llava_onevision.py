"""LLaVA-OneVision from each layout it comes in; what a broken one is answered."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.base_folders import logits, untie
from helpers.tiny_model import TinySetup
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlavaOnevisionForConditionalGeneration

from pave.models.bases import llava_onevision
from pave.models.bases._loading import Settings
from pave.types import UserError


def test_hf_layout_gives_the_same_logits(tiny_setup: TinySetup, tmp_path: Path) -> None:
    base = llava_onevision.load(str(tiny_setup.base), trim_vocabulary=False)
    hf = LlavaOnevisionForConditionalGeneration(base.hf.config)
    hf.load_state_dict(base.hf.state_dict())
    for name, as_on_the_hub in (("hub", True), ("memory", False), ("old", True)):
        folder = tmp_path / name
        hf.save_pretrained(folder, save_original_format=as_on_the_hub)
        base.tokenizer.save_pretrained(folder)
        if name == "old":  # files of transformers 4 name one module more
            state = load_file(folder / "model.safetensors")
            state = {k.replace("vision_tower.", "vision_tower.vision_model."): v for k, v in state.items()}
            save_file(state, folder / "model.safetensors", {"format": "pt"})
        again = llava_onevision.load(str(folder), trim_vocabulary=False)
        assert torch.equal(logits(again), logits(base))


def test_untied_and_sharded(tiny_setup: TinySetup, tmp_path: Path) -> None:
    tied = llava_onevision.load(str(tiny_setup.base), trim_vocabulary=False)
    folder = untie(tiny_setup.base, tmp_path / "untied", scale=1.0)
    assert torch.equal(logits(llava_onevision.load(str(folder), trim_vocabulary=False)), logits(tied))
    folder = untie(tiny_setup.base, tmp_path / "doubled", scale=2.0)
    assert torch.allclose(logits(llava_onevision.load(str(folder), trim_vocabulary=False)), 2 * logits(tied))
    trimmed = llava_onevision.load(str(folder))
    assert trimmed.head.weight.shape[0] == len(trimmed.tokenizer) < tied.head.weight.shape[0]
    assert trimmed.head.weight.data_ptr() != trimmed.hf.get_input_embeddings().weight.data_ptr()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.mm_projector.0.weight": None}, "multi_modal_projector.linear_1.weight"),
        ({"model.extra.weight": torch.zeros(2)}, "model.extra.weight"),
        ({"model.image_newline": torch.zeros(3)}, "image_newline"),
    ],
)
def test_wrong_tensors_are_named(
    tiny_setup: TinySetup, tmp_path: Path, change: dict[str, Tensor | None], message: str
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(tiny_setup.base, folder)
    state = {**load_file(folder / "model.safetensors"), **change}
    save_file({k: v for k, v in state.items() if v is not None}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=message) as caught:
        llava_onevision.load(str(folder))
    assert "\n" not in str(caught.value)


def test_heads_of_an_unknown_tower_must_be_told(tiny_setup: TinySetup, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(tiny_setup.base, folder)
    settings = json.loads((folder / "config.json").read_text())
    vision = settings.pop("vision_config")
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="pass vision_heads"):
        llava_onevision.load(str(folder))
    base = llava_onevision.load(str(folder), Settings(vision_heads=vision["num_attention_heads"]))
    assert base.hf.config.vision_config.num_hidden_layers == vision["num_hidden_layers"]
    assert base.image_size == vision["image_size"]
