"""What holds for every side-channel, and how each reads our own feature files and the official ones."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from helpers.paths import GOLDEN
from safetensors.torch import load_file
from torch import Tensor

from pave.data.dataset import read_side_tokens
from pave.data.extraction import side_to_extract
from pave.media import feature_files
from pave.sides.base import SideChannel, find_videos, get_side
from pave.types import SideTokens, UserError
from pave.utils import registry

SIDES = ["audio", "dense", "exo", "scene3d", "video"]
AUDIO = load_file(GOLDEN / "module/features/audio.safetensors")
DENSE = load_file(GOLDEN / "module/features/dense.safetensors")
DICT = {"x": torch.zeros(2, 3)}
OWN = SideTokens(torch.arange(24).view(6, 2, 2).float(), torch.arange(6) / 2)


def write_own(folder: Path, name: str, extractor: str, tokens: SideTokens = OWN) -> Path:
    """Write tokens as `pave extract NAME` stores them; returns the path that `load` takes."""
    meta = feature_files.Meta(name, extractor, "a.mp4")
    feature_files.write(folder / "take/cam01.safetensors", tokens, meta)
    return folder / "take" if name == "exo" else folder / "take/cam01.safetensors"


def write_official(folder: Path, name: str, content: object) -> Path:
    """Write an official file; returns the path that `load` takes."""
    torch.save(content, folder / "a.pt")
    return folder if name == "exo" else folder / "a.pt"


def steps_first(x: Tensor) -> Tensor:
    """The official (C, K, H, W) as float[K,P,C]."""
    return x.float().permute(1, 2, 3, 0).flatten(1, 2)


def test_every_plugin_is_tested_here() -> None:
    assert sorted([*registry.names("sides"), "video"]) == SIDES


@pytest.mark.parametrize("name", SIDES)
def test_own_files_are_read_back_whichever_encoder_wrote_them(name: str, tmp_path: Path) -> None:
    side = side_to_extract(name)
    assert side.extractor(side.options_type()) in side.extractors
    for extractor in side.extractors:
        tokens = side.load(write_own(tmp_path, name, extractor))
        assert torch.equal(tokens.x, OWN.x)
        assert tokens.seconds is not None
        assert tokens.seconds.tolist() == [0, 0.5, 1, 1.5, 2, 2.5]
        random_tokens = side.load_random(write_own(tmp_path, name, extractor), random.Random(0))
        assert torch.equal(random_tokens.x, OWN.x), "one view has no other part than itself"


@pytest.mark.parametrize("name", SIDES)
def test_files_of_another_encoder_width_or_with_nan_are_refused(name: str, tmp_path: Path) -> None:
    side = side_to_extract(name)
    with pytest.raises(UserError, match=f"made by extractor 'other', expected '{side.extractors[0]}'"):
        side.load(write_own(tmp_path, name, "other"))
    with pytest.raises(UserError, match="width 2, this patch needs 3"):
        read_side_tokens(side.load, write_own(tmp_path, name, side.extractors[0]), dim=3)
    broken = write_own(tmp_path, name, side.extractors[0], OWN._replace(x=OWN.x / 0))
    with pytest.raises(UserError, match="NaN or infinity"):
        read_side_tokens(side.load, broken, dim=2)


@pytest.mark.parametrize("name", SIDES)
def test_defaults(name: str, tmp_path: Path) -> None:
    side = side_to_extract(name)
    if name != "audio":
        assert side.suspicion(OWN.x) == ""
    if name in ("dense", "exo", "video"):
        assert side.note(None) == ""
    assert side.reads_video == (name not in ("exo", "scene3d"))
    if not side.reads_video:
        with pytest.raises(UserError, match=tmp_path.name):
            side.find_items(tmp_path)
        return
    for file in ("b.MP4", "a/c.mkv", "a/.d.mp4", "a/e.wav"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    items = side.find_items(tmp_path)
    assert items == find_videos(tmp_path)
    assert [(item.name, item.path.name) for item in items] == [("a/c", "c.mkv"), ("b", "b.MP4")]


def test_a_module_without_a_side_channel_is_named() -> None:
    with pytest.raises(UserError, match=r"^pave\.types: has no class SideChannel"):
        get_side("pave.types")


CONTENTS = {
    "audio": (torch.zeros(3), torch.zeros(1, 2, 3, 4), DICT),
    "dense": (torch.zeros(7), torch.zeros(7, 7, 2), torch.zeros(1, 1, 4, 4), DICT),
    "exo": (torch.zeros(9, 2), DICT),
    "scene3d": (torch.zeros(7), torch.zeros(7, 7, 2), torch.zeros(1, 1, 4, 4), DICT),
}


@pytest.mark.parametrize(("name", "content"), [(name, x) for name, contents in CONTENTS.items() for x in contents])
def test_other_official_contents_are_refused(name: str, content: object, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.pt: holds (shape|dict).*, expected a tensor \(") as caught:
        get_side(name).load(write_official(tmp_path, name, content))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case", ["audio_2d", "audio_3d", "audio_requires_grad", "audio_half"])
def test_official_audio_files(case: str, tmp_path: Path) -> None:
    """The official code makes (C, K, 1, 1) of them; ours are steps first and always float32."""
    x = AUDIO[f"{case}/in"].requires_grad_(case == "audio_requires_grad")
    tokens = get_side("audio").load(write_official(tmp_path, "audio", x))
    assert (tokens.x.dtype, tokens.x.requires_grad, tokens.seconds) == (torch.float32, False, None)
    assert torch.equal(tokens.x, steps_first(AUDIO[f"{case}/out"]))


def test_official_bfloat16_keeps_its_values(tmp_path: Path) -> None:
    x = torch.randn(5, 8).bfloat16()
    assert torch.equal(get_side("audio").load(write_official(tmp_path, "audio", x)).x, x.float()[:, None])


@pytest.mark.parametrize("case", ["languagebind_cls", "languagebind_no_cls", "internvideo2", "siglip"])
def test_official_dense_files(case: str, tmp_path: Path) -> None:
    tokens = get_side("dense").load(write_official(tmp_path, "dense", DENSE[f"{case}/in"].half()))
    assert (tokens.x.dtype, tokens.seconds) == (torch.float32, None)
    assert torch.equal(tokens.x, steps_first(DENSE[f"{case}/out"].half()))


@pytest.mark.parametrize(("tokens", "kept"), [(1, 1), (2, 1), (4, 4), (5, 4), (196, 196), (257, 256)])
def test_the_class_token_goes_and_nothing_else(tokens: int, kept: int, tmp_path: Path) -> None:
    x = torch.randn(3, tokens, 2)
    assert torch.equal(get_side("dense").load(write_official(tmp_path, "dense", x)).x, x[:, tokens - kept :])


def test_a_scene_is_32_views_of_24_by_24(tmp_path: Path) -> None:
    """Token (view, row, column) is the (view * 24 + row) * 24 + column-th of the file; the folder is as good."""
    side, scene = get_side("scene3d"), tmp_path / "scene0000_00"
    scene.mkdir()
    with pytest.raises(UserError, match=r"scene0000_00/video_features\.pt: no such file"):
        side.load(scene)
    x = torch.arange(32 * 24 * 24 * 2).view(1, -1, 2).double()
    torch.save(x, scene / "video_features.pt")
    tokens = side.load(scene)
    assert (tokens.x.shape, tokens.x.dtype) == ((32, 576, 2), torch.float32)
    for view, row, column in ((0, 0, 0), (0, 0, 23), (0, 23, 0), (31, 5, 7), (31, 23, 23)):
        assert torch.equal(tokens.x[view, row * 24 + column], x[0, (view * 24 + row) * 24 + column].float())
    assert torch.equal(side.load(scene / "video_features.pt").x, tokens.x)


def make_views(folder: Path, count: int = 3, steps: int = 4) -> SideChannel:
    """Write official files of some views, whose tokens say which view and step they are."""
    folder.mkdir()
    for view in reversed(range(count)):  # the order of writing must not matter
        x = torch.tensor([[view, step] for step in range(steps)])
        torch.save(x[:, None].expand(-1, 9, -1).half(), folder / f"cam{view:02}.pt")
    return get_side("exo")


def test_views_follow_one_another_at_each_moment(tmp_path: Path) -> None:
    x = make_views(tmp_path / "take").load(tmp_path / "take").x
    assert (x.shape, x.dtype) == ((12, 9, 2), torch.float32)
    assert x[:, 0].tolist() == [[view, step] for step in range(4) for view in range(3)]
    assert torch.equal(x, x[:, :1].expand_as(x))


def test_training_draws_every_part_of_the_views_and_never_none(tmp_path: Path) -> None:
    """First how many, all numbers alike, then which: of three views a single one and a pair have odds of 1 to 9."""
    side, rng = make_views(tmp_path / "take", steps=1), random.Random(0)
    draws = [side.load_random(tmp_path / "take", rng).x[:, 0, 0].int().tolist() for _ in range(900)]
    counts = Counter(tuple(views) for views in draws)
    assert set(counts) == {(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)}
    assert abs(counts[0, 1, 2] - 300) < 60
    assert all(abs(count - 100) < 40 for views, count in counts.items() if len(views) < 3)


def test_the_seed_decides_the_draw(tmp_path: Path) -> None:
    side = make_views(tmp_path / "take", count=4)
    draws = [[side.load_random(tmp_path / "take", random.Random(seed)).x for seed in range(8)] for _ in range(2)]
    assert all(torch.equal(first, second) for first, second in zip(*draws))
    assert len({len(x) for x in draws[0]}) > 1


def test_own_views_come_before_official_ones(tmp_path: Path) -> None:
    side = make_views(tmp_path / "take")
    for view in range(2):
        tokens = SideTokens(torch.full((2, 9, 2), float(view)), torch.tensor([0.0, 1.5]))
        meta = feature_files.Meta("exo", side.extractors[0], "a.mp4")
        feature_files.write(tmp_path / f"take/cam{view}.safetensors", tokens, meta)
    loaded = side.load(tmp_path / "take")
    assert loaded.x[:, 0, 0].tolist() == [0, 1, 0, 1]
    assert loaded.seconds is not None
    assert loaded.seconds.tolist() == [0, 0, 1.5, 1.5]


def test_other_views_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="take: no feature files"):
        get_side("exo").load(tmp_path / "take")
    side = make_views(tmp_path / "take")
    torch.save(torch.zeros(5, 9, 2), tmp_path / "take/cam09.pt")
    with pytest.raises(UserError, match=r"take: views of shapes \(4, 9, 2\) and \(5, 9, 2\)"):
        side.load(tmp_path / "take")
