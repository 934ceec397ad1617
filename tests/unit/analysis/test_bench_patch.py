"""`pave bench patch`: the count of the work, one measured row, the table and its files."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from helpers.paths import GOLDEN, read_json
from torch.utils.flop_counter import FlopCounterMode

from pave.analysis import bench_patch
from pave.models.patch import patch as patch_module
from pave.types import UserError

BASELINE = GOLDEN / "module/baseline.json"
ROWS = [
    bench_patch.Row("a", 10.0, 20.0, 30.0, 40.0, 50.0),
    bench_patch.Row("bb", 1.0, 2.0, 3.0, 4.0, 5.0, 600.0, 700.0),
]


def spec(side: str, mode: str, batch: int = 1) -> bench_patch.Spec:
    return bench_patch.Spec(side, "0.5b", batch, mode, "cpu", "float32", threads=1, reps=1)


def test_work_equals_the_official_count() -> None:
    for side, gflop in read_json(BASELINE)["forward_gflop"].items():
        assert bench_patch.gflop(spec(side, "forward")) == pytest.approx(gflop)
        assert bench_patch.gflop(spec(side, "forward", batch=4)) == pytest.approx(4 * gflop)


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
    assert forward.get_total_flops() / 1e9 == pytest.approx(bench_patch.gflop(spec("audio", "forward")), rel=3e-3)
    both = forward.get_total_flops() + backward.get_total_flops()
    assert both / 1e9 == pytest.approx(bench_patch.gflop(spec("audio", "train")), rel=3e-3)


def test_a_row_is_measured_beside_the_official_one() -> None:
    (row,) = bench_patch.patch(1, "cpu", ["audio-0.5b-b1-forward"], reps=1, against=BASELINE)
    assert row.name == "audio-0.5b-b1-forward"
    assert (row.official_cpu_ms, row.official_peak_mb) == (648.5, 180.1)
    assert row.gflop_per_s == pytest.approx(1e3 * row.gflop / row.wall_ms)
    # The output alone is 22.5 MB, and no row may need what the official module needs.
    assert 22 < row.peak_mb < row.official_peak_mb
    assert row.cpu_ms > 10


def test_table_and_files(tmp_path: Path) -> None:
    lines = bench_patch.table(ROWS).splitlines()
    assert lines[0].split("  ")[-1] == "official peak MB"
    assert lines[2].split() == ["bb", "1", "2", "3", "4", "5", "600", "700"]
    assert "official" not in bench_patch.table(ROWS[:1])
    bench_patch.save(ROWS, tmp_path / "rows.json")
    assert [bench_patch.Row(**r) for r in json.loads((tmp_path / "rows.json").read_text())] == ROWS
    bench_patch.save(ROWS, tmp_path / "rows.csv")
    read = list(csv.DictReader((tmp_path / "rows.csv").open()))
    assert (read[0]["official_cpu_ms"], read[1]["official_cpu_ms"]) == ("", "600.0")


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="rows are named like audio"):
        bench_patch.patch(1, "cpu", ["video-*"])
    with pytest.raises(UserError, match=r"written as \.json or \.csv, not '\.txt'"):
        bench_patch.save(ROWS, tmp_path / "rows.txt")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no CUDA device"):
            bench_patch.patch(1, "cuda")
