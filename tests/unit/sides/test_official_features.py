"""Readers of the dense, 3D and exo sides: what the release makes of each published file, our own files, other files."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
import torch
from helpers.paths import GOLDEN
from safetensors.torch import load_file
from torch import Tensor

from pave.media import feature_files
from pave.sides import dense, exo, scene3d
from pave.types import SideTokens, UserError
from pave.utils import registry

FEATURES = load_file(GOLDEN / "module/features/dense.safetensors")


def steps_first(x: Tensor) -> Tensor:
    """The release's (C, K, H, W) as float[K,P,C]."""
    return x.float().permute(1, 2, 3, 0).flatten(1, 2)


def write_own(path: Path, side: str, extractor: str, tokens: SideTokens) -> Path:
    feature_files.write(path, tokens, feature_files.Meta(side, extractor, "a.mp4"))
    return path


@pytest.mark.parametrize(("name", "dim"), [("dense", 1024), ("scene3d", 1024), ("exo", 1152)])
def test_they_are_plugins_of_the_published_widths(name: str, dim: int) -> None:
    assert name in registry.names("sides")
    assert dim == registry.load("sides", name).DIM


@pytest.mark.parametrize("case", ["languagebind_cls", "languagebind_no_cls", "internvideo2", "siglip"])
def test_dense_files_of_the_release(case: str, tmp_path: Path) -> None:
    torch.save(FEATURES[f"{case}/in"].half(), tmp_path / "a.pt")
    tokens = dense.load(tmp_path / "a.pt")
    assert tokens.x.dtype == torch.float32
    assert torch.equal(tokens.x, steps_first(FEATURES[f"{case}/out"].half()))
    assert tokens.seconds is None


@pytest.mark.parametrize(("tokens", "kept"), [(1, 1), (2, 1), (4, 4), (5, 4), (196, 196), (257, 256)])
def test_the_class_token_goes_and_nothing_else(tokens: int, kept: int, tmp_path: Path) -> None:
    x = torch.randn(3, tokens, 2)
    torch.save(x, tmp_path / "a.pt")
    assert torch.equal(dense.load(tmp_path / "a.pt").x, x[:, tokens - kept :])


def test_a_scene_is_32_views_of_24_by_24(tmp_path: Path) -> None:
    """Token (view, row, column) is the (view * 24 + row) * 24 + column-th of the file; the folder is as good."""
    x = torch.arange(32 * 24 * 24 * 2).view(1, -1, 2).double()
    (tmp_path / "scene0000_00").mkdir()
    torch.save(x, tmp_path / "scene0000_00/video_features.pt")
    tokens = scene3d.load(tmp_path / "scene0000_00")
    assert tokens.x.shape == (32, 576, 2)
    assert tokens.x.dtype == torch.float32
    for view, row, column in ((0, 0, 0), (0, 0, 23), (0, 23, 0), (31, 5, 7), (31, 23, 23)):
        assert torch.equal(tokens.x[view, row * 24 + column], x[0, (view * 24 + row) * 24 + column].float())
    assert torch.equal(scene3d.load(tmp_path / "scene0000_00/video_features.pt").x, tokens.x)


def make_views(folder: Path, count: int = 3, steps: int = 4) -> Tensor:
    """Published files of some views, and float[V,T,P,C] of all, whose values say which view and step they are."""
    folder.mkdir()
    x = torch.stack([torch.arange(count).view(-1, 1).expand(-1, steps), torch.arange(steps).expand(count, -1)], 2)
    x = x[:, :, None].expand(-1, -1, 9, -1).float()
    for i in reversed(range(count)):  # the order of writing must not matter
        torch.save(x[i].half(), folder / f"cam{i:02}.pt")
    return x


def test_views_follow_one_another_at_each_moment(tmp_path: Path) -> None:
    make_views(tmp_path / "take")
    x = exo.load(tmp_path / "take").x
    assert x.shape == (12, 9, 2)
    assert x.dtype == torch.float32
    assert x[:, 0].tolist() == [[view, step] for step in range(4) for view in range(3)]
    assert torch.equal(x, x[:, :1].expand_as(x))


def test_training_draws_every_part_of_the_views_and_never_none(tmp_path: Path) -> None:
    """First how many, all numbers alike, then which: of three views a single one and a pair have odds of 1 to 9."""
    make_views(tmp_path / "take", steps=1)
    rng = random.Random(0)
    drawn = Counter(tuple(exo.load_random(tmp_path / "take", rng).x[:, 0, 0].int().tolist()) for _ in range(900))
    assert set(drawn) == {(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)}
    assert abs(drawn[0, 1, 2] - 300) < 60
    assert all(abs(n - 100) < 40 for views, n in drawn.items() if len(views) < 3)


def test_the_draw_is_the_seed_s(tmp_path: Path) -> None:
    make_views(tmp_path / "take", count=4)
    draws = [[exo.load_random(tmp_path / "take", random.Random(seed)).x for seed in range(8)] for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*draws))
    assert len({len(x) for x in draws[0]}) > 1


def test_own_files(tmp_path: Path) -> None:
    tokens = SideTokens(torch.randn(6, 4, 8), torch.arange(6) / 2)
    for plugin, name in ((dense, "dense"), (scene3d, "scene3d")):
        got = plugin.load(write_own(tmp_path / f"{name}.safetensors", name, plugin.EXTRACTORS[0], tokens))
        assert torch.equal(got.x, tokens.x)
        assert got.seconds is not None
        assert got.seconds.tolist() == [0, 0.5, 1, 1.5, 2, 2.5]
        with pytest.raises(UserError, match=f"by extractor 'other', expected '{plugin.EXTRACTORS[0]}'"):
            plugin.load(write_own(tmp_path / "other.safetensors", name, "other", tokens))


def test_own_views_come_before_published_ones(tmp_path: Path) -> None:
    make_views(tmp_path / "take")
    seconds = torch.tensor([0.0, 1.5])
    for i in range(2):
        tokens = SideTokens(torch.full((2, 9, 2), float(i)), seconds)
        write_own(tmp_path / f"take/cam{i}.safetensors", "exo", exo.EXTRACTORS[0], tokens)
    got = exo.load(tmp_path / "take")
    assert got.x[:, 0, 0].tolist() == [0, 1, 0, 1]
    assert got.seconds is not None
    assert got.seconds.tolist() == [0, 0, 1.5, 1.5]


@pytest.mark.parametrize("side", [dense, scene3d])
@pytest.mark.parametrize("wrong", [torch.zeros(7), torch.zeros(7, 7, 2), torch.zeros(1, 1, 4, 4), {"x": torch.ones(3)}])
def test_other_tensors_are_refused(side: ModuleType, wrong: object, tmp_path: Path) -> None:
    torch.save(wrong, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"a\.pt: holds (shape|dict).*, expected a tensor \(") as caught:
        side.load(tmp_path / "a.pt")
    assert "\n" not in str(caught.value)


def test_other_views_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="take: no feature files"):
        exo.load(tmp_path / "take")
    make_views(tmp_path / "take")
    torch.save(torch.zeros(5, 9, 2), tmp_path / "take/cam09.pt")
    with pytest.raises(UserError, match=r"take: views of shapes \(4, 9, 2\) and \(5, 9, 2\)"):
        exo.load(tmp_path / "take")
    torch.save(torch.zeros(9, 2), tmp_path / "take/cam09.pt")
    with pytest.raises(UserError, match=r"cam09\.pt: holds shape \(9, 2\)"):
        exo.load(tmp_path / "take")


def test_a_scene_without_features_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "scene0000_00").mkdir()
    with pytest.raises(UserError, match=r"scene0000_00/video_features\.pt: no such file"):
        scene3d.load(tmp_path / "scene0000_00")
