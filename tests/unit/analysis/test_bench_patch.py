"""`pave bench patch`: the count of the work, two patches measured in turn, the table, refusals."""

from __future__ import annotations

import pytest
import torch
from helpers.paths import GOLDEN, read_json
from torch.utils.flop_counter import FlopCounterMode

from pave.analysis import bench_patch
from pave.models.patch import patch as patch_module
from pave.types import UserError


def make_spec(side: str, mode: str, batch: int = 1) -> bench_patch.Spec:
    return bench_patch.Spec(side, "0.5b", batch, mode)


def test_work_equals_the_official_count() -> None:
    for side, gflop in read_json(GOLDEN / "module/baseline.json")["forward_gflop"].items():
        assert bench_patch.gflop(make_spec(side, "forward")) == pytest.approx(gflop)
        assert bench_patch.gflop(make_spec(side, "forward", batch=4)) == pytest.approx(4 * gflop)


def test_work_equals_torchs_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patch_module, "folding_pays", lambda tokens, key: False)
    side = bench_patch.SIDES["audio"]
    patch = patch_module.Patch(side.dim, bench_patch.QUERY_DIM, 896)
    query = torch.randn(1, bench_patch.FRAMES, bench_patch.TOKENS, bench_patch.QUERY_DIM)
    with FlopCounterMode(display=False) as forward:
        out = patch(query, torch.randn(1, side.steps, side.per_step, side.dim))
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    # torch leaves out attention itself on a CPU; four audio keys a window make it 0.2 percent.
    assert forward.get_total_flops() / 1e9 == pytest.approx(bench_patch.gflop(make_spec("audio", "forward")), rel=3e-3)
    both = forward.get_total_flops() + backward.get_total_flops()
    assert both / 1e9 == pytest.approx(bench_patch.gflop(make_spec("audio", "train")), rel=3e-3)


def test_two_patches_in_turn() -> None:
    (row,) = bench_patch.measure_rows(["audio-0.5b-b1-forward"], threads=1, repetitions=1, against=["num_layers=1"])
    assert row.name == "audio-0.5b-b1-forward"
    assert row.gflop == pytest.approx(58.7, abs=0.1)
    assert row.peak_mb > 22, "the output alone is 22.5 MB"
    assert row.against_ms is not None
    assert row.ratio == pytest.approx(row.against_ms / row.cpu_ms)


def test_the_columns_of_a_second_patch_are_there_with_it_only() -> None:
    alone, pair = bench_patch.Row("a", 10, 20, 30, 40), bench_patch.Row("bb", 1, 2, 3, 4, 6, 3)
    assert [line.split() for line in bench_patch.table([pair]).splitlines()[1:]] == [["bb", *"12346", "3.00"]]
    assert "second" not in bench_patch.table([alone])


def test_refused_settings() -> None:
    with pytest.raises(UserError, match="rows are named like audio"):
        bench_patch.measure_rows(["video-*"])
    with pytest.raises(UserError, match="unknown key 'layers'"):
        bench_patch.measure_rows(["audio-*"], against=["layers=1"])
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no CUDA device"):
            bench_patch.measure_rows(device="cuda")
