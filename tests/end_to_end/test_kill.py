"""A run that is killed in the middle of a save goes on, and ends as the unbroken one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers import fault_injection
from helpers.tiny_model import TinySetup, make_config
from helpers.training_runs import losses

from pave import config
from pave.checkpoints import build, load
from pave.evaluation import evaluate
from pave.tasks import sideworld
from pave.training import resume, train

LEFT = {"patch": 2, "optimizer": 2, "state": 2, "final": 6}
"""The newest whole checkpoint, by where the run was killed."""


def test_killed_in_the_middle_of_a_save(tiny_setup: TinySetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sideworld.Task, "target", staticmethod(fault_injection.wordy))
    run = make_config(*tiny_setup, max_steps=6)
    (tmp_path / "run.yaml").write_text(config.dump(run))
    train.main(run, tmp_path / "whole")
    expected = losses(tmp_path / "whole"), answers(tmp_path / "whole")
    done = fault_injection.launch(["killed", str(tmp_path / "run.yaml"), str(tmp_path)])
    assert done.returncode == 0, done.stderr
    for point in fault_injection.POINTS:
        out = tmp_path / point
        assert not (out / "final").exists()
        assert Path(resume.newest_checkpoint(out)).name == f"checkpoint-{LEFT[point]}"
        train.main(run, out, resume=True)
        assert (losses(out), answers(out)) == expected, point
        whole, again = (build.load(folder / "final")[0].state_dict() for folder in (tmp_path / "whole", out))
        assert all(torch.equal(whole[name], again[name]) for name in whole)


def answers(out: Path) -> list[str]:
    """What the trained model says."""
    model, run = load.load_model(out / "final", None, [], False, "cpu")
    evaluate.main(model, run, out / "eval", evaluate.Options(workers=0, max_new_tokens=3))
    return [json.loads(line)["text"] for line in (out / "eval/predictions.jsonl").read_text().splitlines()]
