"""Depth on the small world from clips to answers, the quickest of its further side-channels to learn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.paths import ROOT

from pave.cli import main


@pytest.mark.slow
def test_the_patch_learns_which_thing_is_nearer(tmp_path: Path) -> None:
    """The first of the recipe's two runs, to be done in four minutes on two cores; the second mends the controls."""
    data, store, weights = tmp_path / "data", tmp_path / "data/features/scene3d", "asset:sideworld/base"
    pave("prepare", "sideworld", "--out", data, "--channels", "depth", "--train", 800, "--test", 150, "--seed", 1)
    pave(*f"extract scene3d tower=base views=4 --videos {data}/depth --out {store} --weights {weights}".split())
    few = ["data.train_split=channels", "train.max_steps=250", "train.report_to=none"]
    pave("train", ROOT / "configs/sideworld/scene3d.yaml", "--out", tmp_path / "first", f"data.root={data}", *few)
    metrics = {}
    for name, options in (("base", ["--base-only"]), ("patched", []), ("shuffled", ["--shuffle-sides"])):
        pave("eval", "--ckpt", tmp_path / "first/final", "--out", tmp_path / name, "--batch", 32, *options)
        metrics[name] = json.loads((tmp_path / name / "metrics.json").read_text())["metrics"]
    assert metrics["patched"]["nearer_color"] >= 0.9, metrics
    assert metrics["patched"]["depth"] >= 0.8, metrics
    # Chance is .5; four standard deviations on 300 questions are .115.
    assert max(metrics[name]["depth"] for name in ("base", "shuffled")) < 0.615, metrics


def pave(*words: object) -> None:
    assert main.main([str(word) for word in words]) == 0
