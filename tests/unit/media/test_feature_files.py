"""Feature files: what is written comes back, and everything that can be wrong with one is a clear error."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pave import __version__
from pave.media import feature_files
from pave.media.feature_files import Meta
from pave.types import SideTokens, UserError

META = Meta("audio", "imagebind_audio", "clip.mp4", "{}", "00ff", "5", "aa")


def tokens(steps: int = 3, width: int = 8) -> SideTokens:
    return SideTokens(torch.randn(steps, 2, width), torch.arange(steps) + 1.0)


def test_round_trip(tmp_path: Path) -> None:
    path, wanted = tmp_path / "deep/clip.safetensors", tokens()
    feature_files.write(path, wanted, META)
    got = feature_files.read(path, [META.extractor])
    assert torch.equal(got.x, wanted.x)
    assert got.seconds is not None
    assert torch.equal(got.seconds, wanted.seconds)
    assert feature_files.read_meta(path) == META
    assert META.pave_version == __version__
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_half_precision_is_stored_as_it_is_and_read_as_float32(tmp_path: Path) -> None:
    path, x = tmp_path / "a.safetensors", torch.randn(3, 1, 4).bfloat16()
    feature_files.write(path, SideTokens(x), META)
    got = feature_files.read(path, [META.extractor])
    assert got.seconds is None
    assert got.x.dtype == torch.float32
    assert torch.equal(got.x, x.float())
    assert feature_files.read_safetensors(path).state["x"].dtype == torch.bfloat16


def test_a_view_that_is_still_learning_can_be_written(tmp_path: Path) -> None:
    x = torch.randn(4, 3, 2, requires_grad=True).transpose(0, 2)
    feature_files.write(tmp_path / "a.safetensors", SideTokens(x), META)
    assert torch.equal(feature_files.read(tmp_path / "a.safetensors", [META.extractor]).x, x.detach())


def test_a_full_disk_leaves_nothing_and_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    feature_files.write(path, tokens(), META)
    before = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"a\.safetensors: cannot be written: No space left"):
        feature_files.write(path, tokens(5), META)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before


def test_check_accepts_what_fits(tmp_path: Path) -> None:
    feature_files.check_tokens(tokens(), tmp_path, 8)
    feature_files.check_tokens(SideTokens(torch.zeros(1, 1, 4)), tmp_path, 4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (SideTokens(torch.zeros(3, 8)), r"shape \(3, 8\)"),
        (SideTokens(torch.zeros(0, 1, 8)), "empty"),
        (SideTokens(torch.zeros(3, 0, 8)), "empty"),
        (SideTokens(torch.zeros(3, 1, 7)), "width 7, this patch needs 8"),
        (SideTokens(torch.tensor([float("nan")] * 8).view(1, 1, 8)), "NaN"),
        (SideTokens(torch.full((1, 1, 8), float("inf"))), "infinity"),
        (SideTokens(torch.zeros(3, 1, 8), torch.zeros(2)), "2 times for 3 steps"),
    ],
)
def test_check_names_the_file_and_the_fault(wrong: SideTokens, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        feature_files.check_tokens(wrong, tmp_path / "a.safetensors", 8)
    assert str(caught.value).startswith(f"{tmp_path / 'a.safetensors'}: ")
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(UserError, match="no such file"):
        feature_files.read(path, [META.extractor])
    feature_files.write(path, tokens(), META)
    with pytest.raises(UserError, match="made by extractor 'imagebind_audio', expected 'languagebind' or 'dense'"):
        feature_files.read(path, ["languagebind", "dense"])
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="not a whole safetensors file") as caught:
        feature_files.read(path, [META.extractor])
    assert "\n" not in str(caught.value)
    save_file({"features": torch.zeros(2)}, path, {"pave": '{"extractor": "imagebind_audio"}'})
    with pytest.raises(UserError, match=r"has tensors \['features'\], expected 'x'"):
        feature_files.read(path, [META.extractor])
    with pytest.raises(UserError, match=r"lacks side, source, options, .*, pave_version"):
        feature_files.read_meta(path)
    save_file({"x": torch.zeros(2)}, path, {"pave": "{"})
    with pytest.raises(UserError, match="its header is not valid JSON"):
        feature_files.read_meta(path)


class Unwelcome:
    """Something that would run code when unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.mkdir, ("unpickled",)


@pytest.mark.parametrize("content", [b"", b"plain text\n" * 9, bytes(99), b"\x80\x02" + b"\xff" * 50])
def test_broken_tensor_files(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.pt: not a whole file of plain tensors"):
        feature_files.read_torch(tmp_path / "a.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_tensor_files(zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.pt"
    torch.save({"x": torch.arange(3)}, path, _use_new_zipfile_serialization=zipped)
    assert torch.equal(feature_files.read_torch(path)["x"], torch.arange(3))
    torch.save({"x": Unwelcome()}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="not a whole file of plain tensors"):
        feature_files.read_torch(path)
    assert not (tmp_path / "unpickled").exists()
