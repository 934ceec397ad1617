"""A run that is killed in the middle of a save is resumed, and ends as the undisturbed one."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import fault_injection
from helpers.tiny_model import TinySetup, make_config
from helpers.training_runs import check_same_weights, losses

from pave import config
from pave.tasks.sideworld import Task
from pave.training import resume, train

NEWEST = {"patch": 2, "optimizer": 2, "state": 2, "final": 4}
"""The newest complete checkpoint, by where the run was killed."""


def test_killed_in_the_middle_of_a_save(tiny_setup: TinySetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Task, "target", fault_injection.target_of_several_lengths)
    run = make_config(*tiny_setup)
    (tmp_path / "run.yaml").write_text(config.dump(run))
    train.main(run, tmp_path / "whole")
    process = fault_injection.launch(["killed", str(tmp_path / "run.yaml"), str(tmp_path)])
    assert process.returncode == 0, process.stderr
    for point in fault_injection.POINTS:
        out = tmp_path / point
        assert not (out / "final").exists()
        assert resume.newest_checkpoint(out).name == f"checkpoint-{NEWEST[point]}"
        train.main(run, out, resume=True)
        assert losses(out) == losses(tmp_path / "whole"), point
        check_same_weights(tmp_path / "whole", out)
