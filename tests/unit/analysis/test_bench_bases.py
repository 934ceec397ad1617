"""`pave bench bases`: what bases see is timed in turns and counted; `pave list bases`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from helpers.paths import ROOT
from helpers.tiny_bases import make_port, make_qwen

from pave.analysis import bench_bases
from pave.analysis.bench_bases import BaseSize
from pave.checkpoints import build
from pave.cli import main
from pave.config import BaseConfig
from pave.models import base_catalog
from pave.types import UserError
from pave.utils import registry


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {}
    for name, make in (("video_llava", make_port), ("qwen2_5_vl", make_qwen)):
        (tmp_path / name).mkdir()
        sizes[name] = BaseSize(str(make(tmp_path / name)))
    monkeypatch.setattr(bench_bases, "BASES", sizes)


def test_turns_work_and_ratios(tiny: None) -> None:
    first, second = bench_bases.measure_bases(["video_llava", "qwen2_5_vl"], 8, (84, 112), repetitions=2, threads=1)
    assert (first.base, first.tokens, first.fewer_tokens, first.faster) == ("video_llava", 8 * 5, 1.0, 1.0)
    # 112 x 84 are 4 x 3 tokens of Qwen's for each two of 8 frames.
    assert (second.tokens, second.fewer_tokens) == (48, 40 / 48)
    assert second.faster == pytest.approx(first.spent_ms / second.spent_ms)
    assert min(first.wall_ms, first.prepare_ms, first.visual_gflop, first.llm_tflop) > 0
    lines = bench_bases.table([first, second], 8).splitlines()
    assert lines[2].split()[:3] == ["qwen2_5_vl", "48", "6"]


@torch.no_grad()
def test_weights_are_there_for_a_turn_only(tiny: None) -> None:
    known = bench_bases.BASES["qwen2_5_vl"]
    base = build.load_base(BaseConfig("qwen2_5_vl", known.path, newline="no_token"), weights=False).eval()
    pixels = torch.randn(1, 2, 6, 56, 84)
    with bench_bases.random_weights(base, "cpu"):
        embeds = base.encode(pixels).embeds
        assert not any(x.is_meta for x in base.vision_tower.parameters())
        assert all(x.is_meta for x in base.hf.parameters())
    assert embeds.shape == (1, 2, 6, base.embed_dim)
    assert embeds.std() > 1e-3
    assert all(x.is_meta for x in base.parameters())


def test_true_sizes() -> None:
    part = bench_bases.load_visual_part("ppllava", 2, (480, 640), "bfloat16")
    assert part.tokens == 64
    # Of CLIP-L's 304 M all but the last layer, for each of 577 tokens of two frames, and more.
    assert part.visual_flops > 2 * 2 * 577 * 290e6
    assert set(bench_bases.DEFAULT_BASES) <= set(bench_bases.BASES)


def test_the_command_and_what_is_refused(tiny: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["bench", "bases", "video_llava", "--frames", "2", "--reps", "1", "--size", "60", "80", "--threads", "1"]
    assert main.main([*line, "--out", str(tmp_path / "rows.json")]) == 0
    assert "fewer tokens" in capsys.readouterr().out
    assert [row["tokens"] for row in json.loads((tmp_path / "rows.json").read_text())] == [2 * 5]
    with pytest.raises(UserError, match="bench bases qwen: not known at true size; did you mean 'qwen2_5_vl'"):
        bench_bases.measure_bases(["qwen"])
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no CUDA device"):
            bench_bases.measure_bases(["video_llava"], device="cuda")


def test_every_base_is_listed_with_its_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["list", "bases"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == registry.names("bases")
    for name in registry.names("bases"):
        page, text = base_catalog.BASES[name].page, (ROOT / base_catalog.BASES[name].page).read_text()
        assert re.search(rf"\b{name}\b", text), page
        assert re.search(r"Apache-2\.0|licence", base_catalog.BASES[name].licence)
