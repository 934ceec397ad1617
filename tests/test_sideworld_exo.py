"""A second camera on the small world, from clips to answers: the quickest of its further side-channels to learn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pave import cli
from pave.tasks import sideworld

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_patch_learns_what_only_the_camera_behind_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the recipe's visual controls, to be done in four minutes on two cores."""
    monkeypatch.setattr(sideworld, "KINDS", ())
    data, out, store = tmp_path / "data", tmp_path / "out", tmp_path / "data/features/exo"
    pave("prepare", "sideworld", "--out", data, "--channels", "exo", "--train", 800, "--test", 150, "--seed", 1)
    pave("extract", "exo", "--videos", data / "exo", "--out", store, "--weights", "asset:sideworld/base")
    few = ["train.max_steps=300", "train.save_steps=300", "train.report_to=none"]
    pave("train", ROOT / "configs/sideworld_exo.yaml", "--out", out, f"data.root={data}", *few)
    metrics = {}
    for name, options in (("base", ["--base-only"]), ("patched", []), ("shuffled", ["--shuffle-sides"])):
        pave("eval", "--ckpt", out / "final", "--out", tmp_path / name, "--batch", 32, *options)
        metrics[name] = json.loads((tmp_path / name / "metrics.json").read_text())["metrics"]
    assert metrics["patched"]["bigger_back"] >= 0.9, metrics
    assert metrics["patched"]["exo"] >= 0.8, metrics
    # Chance is 1/6; four standard deviations on 300 questions are .086.
    assert max(metrics[name]["exo"] for name in ("base", "shuffled")) < 0.253, metrics


def pave(*words: object) -> None:
    assert cli.main([str(word) for word in words]) == 0
