"""scripts/slurm/train.sbatch under a made-up SLURM of one node."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.distributed_runs import make_run
from helpers.fault_injection import OPTIONS
from helpers.paths import ROOT
from helpers.tiny_model import TinySetup
from helpers.training_runs import losses

from pave import config
from pave.training import train

SCRIPT = ROOT / "scripts/slurm/train.sbatch"
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do echo "$1" >>"$CALLS"; shift; done
"""
SCONTROL = """#!/usr/bin/env bash
if [ "$1" = show ]; then echo localhost; else echo "scontrol $*" >>"$CALLS"; fi
"""


def make_cluster(folder: Path, run: str) -> dict[str, str]:
    """The environment of a job whose srun ends with the command `run`."""
    for name, text in {"srun": SRUN + run, "scontrol": SCONTROL}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    job = {"SLURM_JOB_ID": str(port - 20000), "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "localhost"}
    path = f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    job |= {"SLURM_SUBMIT_DIR": str(ROOT), "CALLS": str(folder / "calls"), "PATH": path, "PROCESSES": "2"}
    return {**os.environ, **OPTIONS, **job}


def test_two_steps_on_one_node(tiny_setup: TinySetup, tmp_path: Path) -> None:
    run = make_run(tiny_setup)
    run = dataclasses.replace(run, train={**run.train, "max_steps": 2})
    (tmp_path / "run.yaml").write_text(config.dump(run))
    command = ["bash", str(SCRIPT), f"{tmp_path}/run.yaml", f"{tmp_path}/out"]
    job = make_cluster(tmp_path, 'exec "$@"\n')
    process = subprocess.run(command, env=job, capture_output=True, text=True, timeout=120, check=False)
    assert process.returncode == 0, process.stderr
    batch = {"per_device_train_batch_size": 4}
    train.main(dataclasses.replace(run, train={**run.train, **batch}), tmp_path / "one")
    assert losses(tmp_path / "out") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
    assert (tmp_path / "out/logs").is_dir()
    assert f"--output={tmp_path}/out/logs/%j-%n.log" in (tmp_path / "calls").read_text().splitlines()


def test_a_job_at_its_time_limit_is_requeued_and_resumes(tmp_path: Path) -> None:
    assert subprocess.run(["bash", "-n", str(SCRIPT)], check=False).returncode == 0
    calls = tmp_path / "calls"
    job = make_cluster(tmp_path, 'echo "$@" >>"$CALLS"; [[ " $* " == *" --resume "* ]] || exec sleep 60\n')
    command = ["bash", str(SCRIPT), "run.yaml", str(tmp_path / "out"), "train.max_steps=9"]
    running = subprocess.Popen(command, env=job, start_new_session=True)
    while not (calls.exists() and "train.max_steps=9" in calls.read_text()):
        time.sleep(0.05)
    assert "--resume" not in calls.read_text()
    running.send_signal(signal.SIGUSR1)
    running.wait(timeout=20)
    os.killpg(running.pid, signal.SIGKILL)
    assert f"scontrol requeue {job['SLURM_JOB_ID']}" in calls.read_text()
    (tmp_path / "out/checkpoint-2").mkdir()
    (tmp_path / "out/checkpoint-2/trainer_state.json").write_text("{}")
    subprocess.run(command, env=job, check=True, timeout=20)
    assert calls.read_text().endswith(f"--out {tmp_path}/out train.max_steps=9 --resume\n")
