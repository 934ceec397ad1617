"""The SigLIP tower alone: bit for bit that of the base, from every layout, without the language model's files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.paths import GOLDEN
from helpers.tiny_model import TinySetup
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlavaOnevisionForConditionalGeneration, SiglipConfig, SiglipModel

from pave import config
from pave.models import pooling
from pave.models.base import LoadSettings
from pave.models.bases import llava_onevision
from pave.models.encoders import siglip
from pave.types import UserError

OFFICIAL = GOLDEN / "e2e/tiny-llava-onevision-qwen2-ov"


def make_images(count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 40, 70, 3), np.uint8)


def patches(tower: siglip.Tower) -> Tensor:
    frames = np.stack([siglip.prepare(p, tower.image_size) for p in make_images()])
    with torch.no_grad():
        return tower.patches(torch.from_numpy(frames))


@pytest.mark.parametrize(("folder", "heads"), [(config.resolve("asset:sideworld/base"), None), (OFFICIAL, 4)])
def test_it_is_the_tower_of_the_base(folder: Path, heads: int | None) -> None:
    base = llava_onevision.Base.load(str(folder), LoadSettings(vision_heads=heads))
    tower = siglip.load(Path(folder), heads)
    assert tower.image_size == base.image_size
    assert not tower.training
    pixels = base.preprocess(make_images())
    with torch.no_grad():
        output = base.hf.model.vision_tower(pixels, output_hidden_states=True)
        query = base.encode(pixels[None]).query[0]
    features = patches(tower)
    assert torch.equal(features, output.hidden_states[-1])
    assert not torch.allclose(features, output.last_hidden_state, atol=0.1), "before the last norm, not after it"
    assert torch.equal(pooling.halve(features), query)


def test_against_the_official_tower() -> None:
    """The recorded pooled features of the official code."""
    tower = siglip.load(OFFICIAL, heads=4)
    frames = np.load(GOLDEN / "e2e/frames.npz")["video_a"]
    recorded = np.load(GOLDEN / "e2e/b_pave.npz")
    prepared = torch.from_numpy(np.stack([siglip.prepare(frame, tower.image_size) for frame in frames]))
    with torch.no_grad():
        pooled = pooling.halve(tower.patches(prepared))
    torch.testing.assert_close(pooled[:, ::28], torch.from_numpy(recorded["before_mlp_rows"]), atol=1e-5, rtol=0)


def test_every_layout(tiny_setup: TinySetup, tmp_path: Path) -> None:
    expected = patches(siglip.load(tiny_setup.base))
    base = llava_onevision.Base.load(str(tiny_setup.base), trim_vocabulary=False)
    hf = LlavaOnevisionForConditionalGeneration(base.hf.config)
    hf.load_state_dict(base.hf.state_dict())
    for name, as_on_the_hub in (("hub", True), ("memory", False)):
        hf.save_pretrained(tmp_path / name, save_original_format=as_on_the_hub)
        assert torch.equal(patches(siglip.load(tmp_path / name)), expected), name
    state = load_file(tmp_path / "hub/model.safetensors")
    for old, new in (
        ("vision_tower.", "vision_tower.vision_model."),
        ("vision_tower.", "model.vision_tower.vision_model."),
    ):
        shutil.copytree(tmp_path / "hub", folder := tmp_path / new)
        renamed = {n.replace(old, new) if n.startswith(old) else n: x for n, x in state.items()}
        save_file(renamed, folder / "model.safetensors", {"format": "pt"})
        assert torch.equal(patches(siglip.load(folder)), expected), new


def test_the_tower_of_google_has_one_layer_more(tiny_setup: TinySetup, tmp_path: Path) -> None:
    vision = json.loads((tiny_setup.base / "config.json").read_text())["vision_config"]
    vision |= {"num_hidden_layers": 3}
    text = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 9}
    torch.manual_seed(0)
    model = SiglipModel(SiglipConfig(vision_config=vision, text_config=text)).eval()
    model.save_pretrained(tmp_path / "google")
    tower = siglip.load(tmp_path / "google")
    assert len(tower.hf.encoder.layers) == 2
    pixels = siglip.normalize(torch.from_numpy(np.stack([siglip.prepare(p, 32) for p in make_images()])))
    with torch.no_grad():
        hidden = model.vision_model(pixels, output_hidden_states=True).hidden_states
    assert torch.equal(patches(tower), hidden[-2])
    model.vision_model.save_pretrained(tmp_path / "vision")
    names = {f"vision_model.{n}": x for n, x in load_file(tmp_path / "vision/model.safetensors").items()}
    save_file(names, tmp_path / "vision/model.safetensors", {"format": "pt"})
    assert torch.equal(patches(siglip.load(tmp_path / "vision")), hidden[-2])


def test_heads_must_be_known(tiny_setup: TinySetup, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_setup.base, tmp_path / "a")
    settings = json.loads((folder / "config.json").read_text())
    heads = settings.pop("vision_config")["num_attention_heads"]
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="number of heads of a 24-wide tower is not in its files; state num_attention"):
        siglip.load(folder)
    expected = patches(siglip.load(tiny_setup.base))
    assert torch.equal(patches(siglip.load(folder, heads)), expected)
    (folder / "config.json").write_text(json.dumps({**settings, "vision_config": {"num_attention_heads": heads}}))
    assert torch.equal(patches(siglip.load(folder)), expected)
