"""The rotary embedding against the official tables, ids and rotation, all stored (tests/golden/module/patch/part_*)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.paths import GOLDEN, read_json
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from pave.models.patch import rotary

FOLDER = GOLDEN / "module/patch"
IDS = load_file(FOLDER / "part_rope_position_ids.safetensors")
FACTORISED = read_json(FOLDER / "part_rope_position_ids.json")["factorised"]
TABLE = load_file(FOLDER / "part_rotary_table.safetensors")
LIKE = torch.empty(0)


def numbers(key: str) -> tuple[int, int, int, int]:
    """Tq3_Sq196_Tk6_Sk4 -> 3, 196, 6, 4"""
    frames, per_frame, steps, per_step = (int(part[2:]) for part in key.split("_"))
    return frames, per_frame, steps, per_step


def official_rotation(ids: Tensor) -> rotary.Rotation:
    """The rotation that int[3,tokens] of time, row and column ids stand for, written the official way round."""
    axis = torch.tensor([0] * 16 + [1] * 24 + [2] * 24)
    angle = ids.float()[axis].T * TABLE["inv_freq"]
    return rotary.Rotation(angle.cos(), angle.sin())


@pytest.mark.parametrize("spec", FACTORISED, ids=lambda s: s["key"])
def test_position_ids(spec: dict[str, list[int]]) -> None:
    frames, per_frame, steps, per_step = numbers(str(spec["key"]))
    grid = rotary.square_side(max(per_frame, per_step))
    assert rotary.frame_times(frames, torch.tensor([steps]))[0].tolist() == spec["q_time"]
    for prefix, tokens in (("q", per_frame), ("k", per_step)):
        cells = rotary.cell_centers(rotary.square_side(tokens), grid).tolist()
        assert [r for r in cells for _ in cells] == spec[f"{prefix}_row"]
        assert cells * len(cells) == spec[f"{prefix}_col"]
    assert spec["k_time"] == list(range(steps))


def test_positions_round_as_numpy_does() -> None:
    steps = [*range(1, 160), *range(160, 8001, 245)]
    for frames in range(1, 129):
        expected = [np.floor(np.linspace(0.0, max(frames, n) - 1, frames)) for n in steps]
        assert np.array_equal(rotary.frame_times(frames, torch.tensor(steps)).numpy(), expected), frames
    for grid in range(1, 33):
        for cells in range(1, 33):
            centers = np.floor(np.linspace(0.0, grid, 2 * cells + 1))[1::2]
            assert np.array_equal(rotary.cell_centers(cells, grid).numpy(), centers), (cells, grid)
    # Where float32 is one less.
    assert rotary.frame_times(64, torch.tensor([148]))[0, 27] == 63
    assert rotary.cell_centers(7, 8)[3] == 4


@pytest.mark.parametrize("key", sorted({k.split("/")[0] for k in IDS}))
def test_rotations_follow_the_official_token_order(key: str) -> None:
    frames, per_frame, steps, per_step = numbers(key)
    grid = rotary.square_side(max(per_frame, per_step))
    times = rotary.frame_times(frames, torch.tensor([steps]))
    queries = rotary.rotation_at(times, per_frame, grid, LIKE)
    keys = rotary.rotation_at(torch.arange(steps)[None], per_step, grid, LIKE)
    for actual, ids in ((queries, IDS[f"{key}/q"]), (keys, IDS[f"{key}/k"])):
        expected = official_rotation(ids)
        assert_close((actual.cos[0], actual.sin[0]), (expected.cos, expected.sin))


def test_tables() -> None:
    by_time = rotary.rotation_at(torch.arange(40)[None], 1, 1, LIKE)
    # Time owns the first 16 frequencies; the others stand still on a 1 x 1 grid, at row and column 0.
    assert_close(by_time.cos[0, :, :16], TABLE["cos"][:, :16], atol=1e-6, rtol=0)
    assert_close(by_time.sin[0, :, :16], TABLE["sin"][:, :16], atol=1e-6, rtol=0)
    assert (by_time.sin[0, :, 16:] == 0).all()
    grid = rotary.rotation_at(torch.zeros(1, 1), 1600, 40, LIKE)
    assert_close(grid.cos[0].view(40, 40, 64)[:, 0, 16:40], TABLE["cos"][:, 16:40], atol=1e-6, rtol=0)
    assert_close(grid.sin[0].view(40, 40, 64)[0, :, 40:], TABLE["sin"][:, 40:64], atol=1e-6, rtol=0)


def test_rotation() -> None:
    data = load_file(FOLDER / "part_rope_apply.safetensors")
    x = data["x"].transpose(1, 2)  # float[1,12,heads,128]
    rotation = official_rotation(data["position_ids"][:, 0])
    actual = rotary.apply_rotary(x, rotary.Rotation(rotation.cos[None], rotation.sin[None]))
    assert_close(actual, data["y"].transpose(1, 2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("tokens", [2, 12, 200])
def test_a_grid_that_is_not_square_is_refused(tokens: int) -> None:
    with pytest.raises(ValueError, match=f"square grid of tokens, got {tokens}"):
        rotary.square_side(tokens)
