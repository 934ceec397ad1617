"""Windows: official lengths and stretching (tests/golden/module/patch/part_*), and the other neighbourhoods by hand."""

from __future__ import annotations

import pytest
import torch
from helpers.paths import GOLDEN, read_json
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from pave.models.patch import windows

FOLDER = GOLDEN / "module/patch"
LENGTHS = read_json(FOLDER / "part_split_and_upsample_lengths.json")
STRETCH = load_file(FOLDER / "part_upsample.safetensors")


@pytest.mark.parametrize("case", LENGTHS["split_list_lengths"], ids=lambda c: f"{c['total']}_{c['parts']}")
def test_chunk_lengths(case: dict) -> None:
    plan = windows.chunks([case["total"]], case["parts"], stretch_to=0)
    assert plan.length[0].tolist() == case["lengths"]
    assert plan.start[0].tolist() == [sum(case["lengths"][:i]) for i in range(case["parts"])]


def test_stretched_lengths() -> None:
    short = {(e["T"], e["chunk_num"]): e["out"] for e in LENGTHS["upsample_exceptions"]}
    assert len(short) > 300
    for to in range(1, 129):
        actual = windows.stretched_length(range(1, to + 1), to)
        assert actual == [short.get((steps, to), to) for steps in range(1, to + 1)]
    assert windows.stretched_length([33, 500], 32) == [33, 500]


def gathered(plan: windows.Windows, x: Tensor, rows: slice = slice(None)) -> Tensor:
    """All windows of packed steps float[M,P,C], joined: float[R,W*P,C]"""
    gather = windows.WindowGather(plan, rows, x.shape[1], x)
    return gather(x[gather.span])


@pytest.mark.parametrize("name", sorted({k.split("/")[0] for k in STRETCH}))
def test_stretching(name: str) -> None:
    steps, frames = map(int, name.split("_"))
    x = STRETCH[f"{name}/x"][0].permute(1, 2, 3, 0).flatten(1, 2)  # [1,C,T,H,W] -> [T,P,C]
    expected = STRETCH[f"{name}/y"][0].permute(1, 2, 3, 0).flatten(1, 2)
    actual = gathered(windows.chunks([steps], frames), x)[: len(expected)]
    assert_close(actual, expected, atol=1e-6, rtol=0)


def test_windows_in_order_are_a_view() -> None:
    x = torch.randn(24, 2, 3)
    assert gathered(windows.chunks([12, 12], 4), x).data_ptr() == x.data_ptr()
    # The first two frames of 10 steps see three each, the others two: each half by itself is whole.
    uneven = windows.chunks([10], 4)
    assert windows.WindowGather(uneven, slice(0, 4), 2, x).mask is not None
    for rows in (slice(0, 2), slice(2, 4)):
        assert windows.WindowGather(uneven, rows, 2, x).mask is None
        assert windows.WindowGather(uneven, rows, 2, x).low is None


def test_portions_equal_the_whole() -> None:
    x = torch.randn(3 + 21 + 40, 2, 5)
    plan = windows.chunks([3, 21, 40], 8)
    complete, mask = gathered(plan, x), windows.WindowGather(plan, slice(None), 2, x).mask
    assert mask is not None
    for i in range(0, 24, 5):
        part = gathered(plan, x, slice(i, i + 5))
        visible = mask[i : i + 5, : part.shape[1]]
        assert_close(part[visible], complete[i : i + 5][mask[i : i + 5]])


def test_centered_by_hand() -> None:
    plan = windows.centered([8, 2], 4, reach=4)
    assert plan.total.tolist() == [8, 4]
    assert plan.start.tolist() == [[0, 1, 3, 4], [0, 0, 0, 0]]
    assert plan.length.tolist() == [[4] * 4, [4] * 4]
    assert (windows.centered([8], 4, reach=100).length == 8).all()


def test_near_by_hand() -> None:
    seconds = [torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.tensor([5.0, 6.0])]
    frames = [torch.tensor([0.0, 2.5, 9.0]), torch.tensor([5.5, 0.0, 7.0])]
    plan = windows.within_seconds(seconds, frames, reach=1.0)
    assert plan.length.tolist() == [[2, 2, 0], [2, 0, 1]]
    assert plan.start[plan.length > 0].tolist() == [0, 2, 0, 1]


def test_everything_is_one_window() -> None:
    plan = windows.one_window([3, 5])
    assert (plan.start.tolist(), plan.length.tolist()) == ([[0], [0]], [[3], [5]])
