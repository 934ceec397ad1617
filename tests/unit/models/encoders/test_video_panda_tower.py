"""Video-Panda's alignment block against the public class and its preprocessing (tests/golden/encoders/video_panda)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.encoder_weights import video_panda, write_checkpoint
from helpers.paths import GOLDEN, read_json
from torch import Tensor
from torch.testing import assert_close

from pave.models.encoders import video_panda_tower
from pave.models.encoders._clip_layers import CLIP_MEAN, CLIP_STD
from pave.models.encoders.video_panda_tower import (
    Box,
    Tower,
    empty_box,
    fit_size,
    num_tokens,
    prepare,
    sample_frames,
    to_canvas,
    valid_box,
)

FOLDER = GOLDEN / "encoders/video_panda"
CLIPS, EXPECTED = np.load(FOLDER / "preprocess.npz"), np.load(FOLDER / "tower.npz")
GEOMETRY, FULL = read_json(FOLDER / "preprocess.json"), read_json(FOLDER / "parameters_full_size.json")
SIZE = 112


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Tower:
    return video_panda_tower.load(write_checkpoint(tmp_path_factory.mktemp("panda"), video_panda()))


def padded_clip(case: str) -> tuple[Tensor, list[Box]]:
    """A clip completed to 8 frames by frames of zeros, in two chunks; and where it is valid."""
    x = prepare(CLIPS[f"{case}/source"], SIZE)
    boxes = [valid_box(*x.shape[-2:], SIZE)] * len(x) + [empty_box(SIZE)] * (8 - len(x))
    return torch.cat([to_canvas(x, SIZE), torch.zeros(8 - len(x), 3, SIZE, SIZE)]).unflatten(0, (2, 4)), boxes


def synthetic_frames(wide: bool) -> tuple[Tensor, list[Box]]:
    """Frames of 448 pixels that are made, not stored."""
    t, y, x, c = np.ogrid[:4, :448, :448, :3]
    images = ((3 * x + 5 * y + 40 * c + 17 * t + 4 * (((x // 14) * (y // 14)) % 31)) % 256).astype(np.uint8)
    valid = torch.from_numpy((images / 255 - np.array(CLIP_MEAN)) / np.array(CLIP_STD)).float().permute(0, 3, 1, 2)
    if wide:
        valid = valid[:, :, 84:336]
    return to_canvas(valid, 448)[None], [valid_box(*valid.shape[-2:], 448)] * 4


@torch.no_grad()
@pytest.mark.parametrize(("case", "rows"), [("square_60x60", [21] * 8), ("tall_72x128", [17] * 2 + [21] * 6)])
def test_tokens(tower: Tower, case: str, rows: list[int]) -> None:
    canvases, boxes = padded_clip(case)
    tokens = tower(canvases, boxes)
    assert [len(x) for x in tokens] == rows == [num_tokens(box) for box in boxes]
    step = {"square_60x60": 5, "tall_72x128": 2}[case]
    assert_close(torch.cat(tokens)[::step], torch.from_numpy(EXPECTED[f"{case}/tokens"]), atol=5e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(("case", "frame", "rows"), [("wide", 3, 154), ("square", 0, 273)])
def test_tokens_at_full_resolution(tower: Tower, case: str, frame: int, rows: int) -> None:
    tokens = tower(*synthetic_frames(case == "wide"))
    assert [len(x) for x in tokens] == [rows] * 4
    expected = torch.from_numpy(EXPECTED[f"rule_448_{case}/tokens_frame{frame}"])
    assert_close(tokens[frame][::12], expected, atol=5e-5, rtol=0)


@torch.no_grad()
def test_an_image_passes_without_mixing_of_frames(tower: Tower) -> None:
    canvases, boxes = padded_clip("square_60x60")
    tokens = tower(canvases[:1, :1], boxes[:1])[0]
    assert_close(tokens, torch.from_numpy(EXPECTED["single_frame/tokens"]), atol=5e-5, rtol=0)


@torch.no_grad()
def test_chunks_do_not_see_one_another_and_frames_do(tower: Tower) -> None:
    canvases, boxes = padded_clip("square_60x60")
    both = tower(canvases, boxes)
    first = tower(canvases[:1], boxes[:4])
    assert all(torch.allclose(x, y, atol=1e-5) for x, y in zip(both, first))
    canvases[0, 3] = -canvases[0, 3]
    assert (tower(canvases, boxes)[0] - both[0]).abs().max() > 1e-2


def test_parameters_and_names_of_the_published_size() -> None:
    with torch.device("meta"):
        tower = Tower(1024)
    assert sum(p.numel() for p in tower.parameters()) == FULL["tower_used"] == 24_086_866
    assert FULL["tower_used"] + FULL["projector_parameters"] == FULL["used_total"] == 45_066_578
    names = {f"model.video_tower.{name}": list(x.shape) for name, x in tower.state_dict().items()}
    assert names == {name: shape for name, shape in FULL["state_keys"].items() if ".lmhra2." not in name}


@pytest.mark.parametrize("case", ["square_60x60", "wide_160x90", "tall_72x128"])
def test_preprocessing(case: str) -> None:
    x = prepare(CLIPS[f"{case}/source"], SIZE)
    canvases, box = to_canvas(x, SIZE), valid_box(*x.shape[-2:], SIZE)
    expected = torch.from_numpy(CLIPS[f"{case}/frames_sampled"])
    assert_close(canvases[:, :, ::9, ::9], expected, atol=1e-5, rtol=0)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (CLIP_MEAN, CLIP_STD))
    levels = ((canvases[0] * std + mean) * 255).round().byte().permute(1, 2, 0)
    assert np.array_equal(levels[::4], CLIPS[f"{case}/canvas"][0])
    (top, bottom), (left, right) = GEOMETRY["cases"][case].values()
    assert [14 * edge for edge in box] == [top, bottom + 1, left, right + 1]


@pytest.mark.parametrize("row", GEOMETRY["geometry_448"], ids=lambda r: f"{r['width']}x{r['height']}")
def test_geometry(row: dict[str, Any]) -> None:
    height, width = fit_size(row["height"], row["width"], 448)
    box = valid_box(height, width, 448)
    assert [14 * edge for edge in box] == [*row["valid_rows"], *row["valid_cols"]]
    assert num_tokens(box) == row["tokens_per_frame"]
    assert fit_size(height, width, 448) == (height, width)


def test_a_frame_of_zeros_has_a_box_of_its_own() -> None:
    assert (empty_box(448), num_tokens(empty_box(448))) == ((0, 16, 0, 16), 73)


@pytest.mark.parametrize("row", read_json(FOLDER / "frame_indices.json"), ids=lambda r: f"{r['frames']}-{r['fps']}")
def test_frames(row: dict[str, Any]) -> None:
    # The public code divides by zero for a video of one frame.
    assert sample_frames(row["frames"], row["fps"]).tolist() == row.get("indices", [0])


def test_names_of_the_image_tower_give_the_same_tower(tower: Tower, tmp_path: Path) -> None:
    other = {name.replace("video_tower", "vision_tower"): x for name, x in video_panda().items()}
    image_tower = video_panda_tower.load(
        write_checkpoint(tmp_path / "a", {**other, "model.layers.0.weight": torch.zeros(1)})
    )
    assert not image_tower.training
    assert all(torch.equal(x, tower.state_dict()[name]) for name, x in image_tower.state_dict().items())
