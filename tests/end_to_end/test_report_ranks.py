"""What two processes log together is what one logs with twice the batch, also where they share parameters."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from helpers import fault_injection
from helpers.distributed_runs import NO_DEEPSPEED, alone, make_joint_run
from helpers.paths import ROOT
from helpers.report_runs import SPEED, Checker, records
from helpers.tiny_model import TinySetup

from pave import config

FSDP2 = ["train.fsdp=true", f"train.fsdp_config={ROOT}/configs/fsdp2.json"]


def check_same(one: Path, two: Path) -> None:
    """Two runs log the same numbers, but those of the clock."""
    for a, b in zip(records(one), records(two), strict=True):
        assert set(a) == set(b)
        for name in set(a) - SPEED:
            assert b[name] == pytest.approx(a[name], rel=1e-3, abs=1e-6), (name, a["step"])
        samples = [record["samples_per_second"] * record["seconds"] for record in (a, b)]
        assert samples[0] == pytest.approx(samples[1])
    facts = json.loads((two / "run.json").read_text())
    assert facts["hardware"].startswith("2 process(es) on a CPU")
    Checker((two / "report.html").read_text())


def both(tiny_setup: TinySetup, out: Path, options: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Folders of one process with twice the batch, and of two."""
    run = make_joint_run(tiny_setup, out)
    run = dataclasses.replace(run, train={**run.train, "max_steps": 4})
    (out / "run.yaml").write_text(config.dump(run))
    done = fault_injection.launch(["plain", f"{out}/run.yaml", f"{out}/two", *options], how=fault_injection.TORCHRUN)
    assert done.returncode == 0, done.stderr
    return alone(run, out / "one", monkeypatch), out / "two"


@pytest.mark.parametrize("options", [[], pytest.param(FSDP2, marks=pytest.mark.slow)], ids=["ddp", "fsdp2"])
def test_two_processes_log_what_one_does(
    tiny_setup: TinySetup, tmp_path: Path, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = both(tiny_setup, tmp_path, options, monkeypatch)
    check_same(one, two)
    assert {"patch/audio/loudness", "patch/echo/update_norm", "lora/grad_norm"} <= {n for r in records(two) for n in r}


@NO_DEEPSPEED
@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_zero_leaves_out_what_it_keeps_in_pieces(
    tiny_setup: TinySetup, tmp_path: Path, stage: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [f"train.deepspeed={ROOT}/configs/distributed/zero{stage}.json"]
    _, two = both(tiny_setup, tmp_path, options, monkeypatch)
    for record in records(two):
        assert record["patch/audio/learning_rate"] >= record["lora/learning_rate"]
        assert {"grad_norm", "lora/learning_rate", "patch/audio/learning_rate", *SPEED} <= set(record)
        assert not any(name.endswith(("/grad_norm", "/update_norm")) for name in record)
