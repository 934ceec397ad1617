"""LLaVA-OneVision from each layout that it comes in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.base_folders import logits, untie
from helpers.tiny_model import TinySetup
from safetensors.torch import load_file, save_file
from transformers import LlavaOnevisionForConditionalGeneration

from pave.models.base import LoadSettings
from pave.models.bases import llava_onevision
from pave.types import UserError


def test_hf_layout_gives_the_same_logits(tiny_setup: TinySetup, tmp_path: Path) -> None:
    base = llava_onevision.Base.load(str(tiny_setup.base), trim_vocabulary=False)
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
        reloaded = llava_onevision.Base.load(str(folder), trim_vocabulary=False)
        assert torch.equal(logits(reloaded), logits(base))


def test_untied_and_sharded(tiny_setup: TinySetup, tmp_path: Path) -> None:
    tied = llava_onevision.Base.load(str(tiny_setup.base), trim_vocabulary=False)
    folder = untie(tiny_setup.base, tmp_path / "untied", scale=1.0)
    assert torch.equal(logits(llava_onevision.Base.load(str(folder), trim_vocabulary=False)), logits(tied))
    folder = untie(tiny_setup.base, tmp_path / "doubled", scale=2.0)
    assert torch.allclose(logits(llava_onevision.Base.load(str(folder), trim_vocabulary=False)), 2 * logits(tied))
    trimmed = llava_onevision.Base.load(str(folder))
    assert trimmed.lm_head.weight.shape[0] == len(trimmed.tokenizer) < tied.lm_head.weight.shape[0]
    assert trimmed.lm_head.weight.data_ptr() != trimmed.hf.get_input_embeddings().weight.data_ptr()


def test_heads_of_an_unknown_tower_must_be_set(tiny_setup: TinySetup, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(tiny_setup.base, folder)
    config_json = json.loads((folder / "config.json").read_text())
    vision = config_json.pop("vision_config")
    (folder / "config.json").write_text(json.dumps(config_json))
    with pytest.raises(UserError, match="pass vision_heads"):
        llava_onevision.Base.load(str(folder))
    base = llava_onevision.Base.load(str(folder), LoadSettings(vision_heads=vision["num_attention_heads"]))
    assert base.hf.config.vision_config.num_hidden_layers == vision["num_hidden_layers"]
    assert base.image_size == vision["image_size"]
