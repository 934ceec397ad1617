"""Depth on the small world from clips to answers, the quickest of its further side-channels to learn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pave import cli
from pave.tasks import sideworld

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_patch_learns_which_thing_is_nearer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On depth questions alone, to be done in four minutes on two cores; the recipe asks visual controls too."""
    monkeypatch.setattr(sideworld, "KINDS", ())
    data, out = tmp_path / "data", tmp_path / "out"
    pave("prepare", "sideworld", "--out", data, "--channels", "depth", "--train", 800, "--test", 150, "--seed", 1)
    store, weights = data / "features/scene3d", "asset:sideworld/base"
    pave(
        *("extract", "scene3d", "tower=base", "views=4"),
        "--videos",
        data / "depth",
        "--out",
        store,
        "--weights",
        weights,
    )
    few = ["train.max_steps=250", "train.save_steps=250", "train.report_to=none"]
    pave("train", ROOT / "configs/sideworld_scene3d.yaml", "--out", out, f"data.root={data}", *few)
    metrics = {}
    for name, options in (("base", ["--base-only"]), ("patched", []), ("shuffled", ["--shuffle-sides"])):
        pave("eval", "--ckpt", out / "final", "--out", tmp_path / name, "--batch", 32, *options)
        metrics[name] = json.loads((tmp_path / name / "metrics.json").read_text())["metrics"]
    assert metrics["patched"]["nearer_color"] >= 0.9, metrics
    assert metrics["patched"]["depth"] >= 0.8, metrics
    # Chance is .5; four standard deviations on 300 questions are .115.
    assert max(metrics[name]["depth"] for name in ("base", "shuffled")) < 0.615, metrics


def pave(*words: object) -> None:
    assert cli.main([str(word) for word in words]) == 0
