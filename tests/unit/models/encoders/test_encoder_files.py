"""The files of every encoder: all forms of a checkpoint are read, wrong and missing tensors are named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from helpers.encoder_weights import (
    LANGUAGEBIND_CONFIG,
    PPLLAVA_CONFIG,
    languagebind,
    ppllava,
    video_panda,
    write_checkpoint,
)
from helpers.paths import GOLDEN, ROOT
from helpers.rgbd_scenes import make_clip_model, position_state
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pave.models.encoders import _state_dict, languagebind_video, llava3d, ppllava_projector, siglip, video_panda_tower
from pave.models.encoders.imagebind_audio import load as load_imagebind
from pave.types import UserError

BASE = ROOT / "pave/sideworld/assets/base"


class Encoder(NamedTuple):
    """How an encoder is loaded, and the names of its tensors."""

    load: Callable[[Path], nn.Module]
    state: Callable[[], dict[str, Tensor]]
    prefix: str
    """Of the names in the file."""
    description: str
    config: dict[str, Any] = {}  # noqa: RUF012
    unexpected: str = "gain"


def imagebind() -> dict[str, Tensor]:
    return load_file(GOLDEN / "encoders/imagebind_audio/tower.safetensors")


def base() -> dict[str, Tensor]:
    return load_file(BASE / "model.safetensors")


BASE_CONFIG = json.loads((BASE / "config.json").read_text())
SIGLIP_PREFIX, GAIN = "model.vision_tower.vision_tower.vision_model.", "modality_trunks.audio.gain"
VISION, PROJECTOR = ppllava_projector.VISION_PREFIX, ppllava_projector.PROJECTOR_PREFIX
ENCODERS = [
    Encoder(lambda x: load_imagebind(x / "model.safetensors"), imagebind, "", "an ImageBind audio tower", {}, GAIN),
    Encoder(languagebind_video.load, languagebind, "vision_model.", "a LanguageBind video tower", LANGUAGEBIND_CONFIG),
    Encoder(lambda x: siglip.load(x).hf, base, SIGLIP_PREFIX, "a SigLIP tower", BASE_CONFIG),
    Encoder(llava3d.load_position, position_state, llava3d.PREFIX, "LLaVA-3D's position embedding"),
    Encoder(lambda x: ppllava_projector.load(x)[0], ppllava, VISION, "a PPLLaVA image tower", PPLLAVA_CONFIG),
    Encoder(lambda x: ppllava_projector.load(x)[1], ppllava, PROJECTOR, "a PPLLaVA projector", PPLLAVA_CONFIG),
    Encoder(video_panda_tower.load, video_panda, "model.video_tower.", "a Video-Panda tower"),
]
NO_TENSORS = {
    "an ImageBind audio tower": "holds no ImageBind audio tower",
    "a LanguageBind video tower": "holds no LanguageBind video tower",
    "a SigLIP tower": "holds no SigLIP vision tower: embeddings.patch_embedding",
    "LLaVA-3D's position embedding": "6 missing",
    "a PPLLaVA image tower": "holds no PPLLaVA towers",
    "a PPLLaVA projector": "holds no PPLLaVA towers",
    "a Video-Panda tower": "holds no Video-Panda tower",
}


@pytest.mark.parametrize("encoder", ENCODERS, ids=lambda encoder: encoder.description)
def test_wrong_tensors_are_named(encoder: Encoder, tmp_path: Path) -> None:
    state, prefix = encoder.state(), encoder.prefix
    module = encoder.load(write_checkpoint(tmp_path / "a", state, encoder.config))
    missing, misshapen, *_ = sorted(name for name in module.state_dict() if name.endswith("bias"))
    del state[prefix + missing]
    state |= {prefix + encoder.unexpected: torch.zeros(1), prefix + misshapen: torch.zeros(3)}
    message = (
        f"not {encoder.description}: 1 missing, such as {missing}; 1 unexpected, such as {encoder.unexpected}; "
        f"1 misshapen, such as {misshapen}; give the checkpoint as published"
    )
    with pytest.raises(UserError, match=f"{re.escape(message)}$"):
        encoder.load(write_checkpoint(tmp_path / "b", state, encoder.config))
    with pytest.raises(UserError, match=NO_TENSORS[encoder.description]):
        encoder.load(write_checkpoint(tmp_path / "c", {"lm_head.weight": torch.zeros(2, 2)}, encoder.config))


def test_clip_ignores_its_text_tower_and_names_wrong_tensors(tmp_path: Path) -> None:
    clip = make_clip_model(tmp_path / "clip")
    state = torch.load(clip / "pytorch_model.bin", weights_only=True)
    assert llava3d.load_clip(clip)
    del state["vision_model.encoder.layers.1.mlp.fc1.bias"]
    state["vision_model.pre_layrnorm.bias"] = torch.zeros(2)
    torch.save(state, clip / "pytorch_model.bin")
    message = r"not CLIP's image tower: 1 missing, such as encoder.*fc1\.bias; 1 misshapen, such as pre_layrnorm\.bias"
    with pytest.raises(UserError, match=message):
        llava3d.load_clip(clip)
    torch.save({"a": Path("a")}, clip / "pytorch_model.bin")
    with pytest.raises(UserError, match="not a whole file of plain tensors"):
        llava3d.load_clip(clip)
    (clip / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(UserError, match=r"config\.json states model type 'llava', expected 'clip'"):
        llava3d.load_clip(clip)


def rename(name: str) -> str | None:
    """An encoder `tower` with `weight` and `bias`."""
    return name.removeprefix("tower.") if name.startswith("tower.") else None


def write(file: Path, state: dict[str, Tensor]) -> None:
    if file.suffix == ".safetensors":
        save_file(state, file)
    else:
        torch.save(state, file)


@pytest.mark.parametrize("stem", ["model.safetensors", "pytorch_model.bin"])
def test_every_form_of_a_checkpoint_gives_the_same_tensors_in_float32(stem: str, tmp_path: Path) -> None:
    """A file, its folder, and parts with an index, of which those without the encoder need not even exist."""
    linear = nn.Linear(3, 2).half()
    state = {f"tower.{name}": x for name, x in linear.state_dict().items()}
    write(tmp_path / stem, {**state, "llm.weight": torch.zeros(1)})
    parts = tmp_path / "parts"
    parts.mkdir()
    files = {name: stem.replace(".", f"-0000{i}-of-00003.") for i, name in enumerate([*state, "llm.weight"])}
    (parts / f"{stem}.index.json").write_text(json.dumps({"weight_map": files}))
    for name, x in state.items():
        write(parts / files[name], {name: x})
    for path in (tmp_path / stem, tmp_path, parts):
        selected = _state_dict.select(path, rename)
        assert {x.dtype for x in selected.values()} == {torch.float32}
        loaded = _state_dict.fill(nn.Linear(3, 2, device="meta"), path, "a layer", selected)
        assert not loaded.training
        assert torch.equal(loaded.weight, linear.weight.float())
        assert torch.equal(loaded.bias, linear.bias.float())
    (parts / files["tower.bias"]).unlink()
    with pytest.raises(UserError, match=rf"{re.escape(files['tower.bias'])}: no such file"):
        _state_dict.select(parts, rename)
    (parts / f"{stem}.index.json").write_text("[]")
    with pytest.raises(UserError, match=r"index\.json: holds a list"):
        _state_dict.select(parts, rename)


def test_broken_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a: no such file"):
        _state_dict.select(tmp_path / "a", rename)
    folder = write_checkpoint(tmp_path / "a", {"tower.bias": torch.zeros(2)})
    assert _state_dict.config(folder) == {}
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UserError, match=r"model\.safetensors: not a whole safetensors file"):
        _state_dict.select(folder, rename)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no weights in it; expected model\.safetensors or pytorch_model\.bin"):
        _state_dict.select(folder, rename)
    torch.save([1, 2], folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin: holds a list, expected named tensors"):
        _state_dict.select(folder, rename)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: not valid JSON"):
        _state_dict.config(folder)
