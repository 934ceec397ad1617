"""The audio tower against the public class (tests/golden/encoders/imagebind_audio): names, values, files, gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.encoder_weights import load_arrays
from helpers.paths import GOLDEN, read_json
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from pave.models.encoders.imagebind_audio import Tower, load, save
from pave.types import UserError

FOLDER = GOLDEN / "encoders/imagebind_audio"


@pytest.fixture
def arrays() -> dict[str, torch.Tensor]:
    return load_arrays("imagebind_audio/tower.npz")


def golden_tower() -> Tower:
    tower = Tower(width=64, depth=2, heads=4, out_dim=64)
    tower.load_state_dict(load_file(FOLDER / "tower.safetensors"))
    return tower.eval()


def test_names_and_shapes_are_the_published_ones() -> None:
    published = read_json(FOLDER / "imagebind_huge_audio_keys.json")
    with torch.device("meta"):
        tower = Tower(width=768, depth=12, heads=12, out_dim=1024)
    state = tower.state_dict()
    assert {name: list(t.shape) for name, t in state.items()} == published["keys"]
    assert len(state) == published["count"] == 177
    assert sum(t.numel() for t in state.values()) == published["values"]
    assert state.keys() - dict(tower.named_parameters()).keys() == set(published["not_parameters"])


@torch.no_grad()
def test_values(arrays: dict[str, torch.Tensor]) -> None:
    tower, mel = golden_tower(), arrays["input"]
    tokens = tower.modality_preprocessors["audio"](mel)
    assert_close(tokens[:1], arrays["tokens_row0"], atol=1e-5, rtol=0)
    trunk = tower.modality_trunks["audio"](tokens)
    assert_close(trunk[:1], arrays["trunk_row0"], atol=2e-5, rtol=0)
    assert_close(tower.modality_heads["audio"](trunk), arrays["head"], atol=2e-5, rtol=0)
    assert_close(tower(mel), arrays["output"], atol=5e-5, rtol=0)


@torch.no_grad()
def test_rows_have_the_length_of_the_scale(arrays: dict[str, torch.Tensor]) -> None:
    tower = golden_tower()
    assert_close(tower(arrays["input"]).norm(dim=1), torch.full((2,), 20.0), atol=1e-4, rtol=0)
    tower.modality_postprocessors["audio"][1].log_logit_scale.fill_(6.0)  # exp(6) is over 400
    assert_close(tower(arrays["input"]).norm(dim=1), torch.full((2,), 100.0), atol=1e-3, rtol=0)


def test_published_file(tmp_path: Path, arrays: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain torch.save, with the other modalities in it; of the known width, so that no heads need be stated."""
    expected = Tower(width=768, depth=1, heads=12, out_dim=8).eval()
    other = {"modality_trunks.vision.blocks.0.attn.bias_k": torch.zeros(3)}
    torch.save({**expected.state_dict(), **other}, tmp_path / "imagebind_huge.pth")
    tower = load(tmp_path / "imagebind_huge.pth")
    assert not tower.training
    with torch.no_grad():
        assert torch.equal(tower(arrays["input"]), expected(arrays["input"]))


def test_save_and_load(tmp_path: Path, arrays: dict[str, torch.Tensor]) -> None:
    save(golden_tower(), tmp_path / "tower.safetensors")
    tower = load(tmp_path / "tower.safetensors")
    assert tower.heads == 4
    with torch.no_grad():
        assert_close(tower(arrays["input"]), arrays["output"], atol=5e-5, rtol=0)


def test_half_precision_weights_become_float32(tmp_path: Path) -> None:
    state = {name: t.half() for name, t in golden_tower().state_dict().items()}
    save_file(state, tmp_path / "half.safetensors", {"heads": "4"})
    assert {t.dtype for t in load(tmp_path / "half.safetensors").state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("metadata", [None, {"heads": "0"}, {"heads": "many"}, {"heads": "5"}])
def test_heads_must_be_known(metadata: dict[str, str] | None, tmp_path: Path) -> None:
    save_file(golden_tower().state_dict(), tmp_path / "a.safetensors", metadata)
    with pytest.raises(UserError, match=r"a\.safetensors: width 64 and .* heads; state the number"):
        load(tmp_path / "a.safetensors")


@pytest.mark.parametrize("content", [torch.zeros(3), {"modality_trunks.vision.x": torch.zeros(3)}, {}])
def test_other_files_are_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"a\.pth: holds no"):
        load(tmp_path / "a.pth")
    with pytest.raises(UserError, match="no such file"):
        load(tmp_path / "missing.pth")


def test_everything_learns_but_the_scale(arrays: dict[str, torch.Tensor]) -> None:
    torch.manual_seed(0)
    tower = Tower(width=32, depth=2, heads=2, out_dim=16)
    mel = arrays["input"].requires_grad_()
    y = tower(mel)
    assert torch.isfinite(y).all()
    (y * torch.randn_like(y)).sum().backward()
    assert mel.grad is not None
    assert mel.grad.abs().max() > 0
    for name, parameter in tower.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
