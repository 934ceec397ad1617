"""Training with faults on demand, in processes of its own, which the tests of kills and of several ranks start.

python [-m torch.distributed.run ...] tests/faults.py FAULT RUN.yaml OUT [key=value ...] [-- FAULT RUN.yaml OUT ...]
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerState

from pave import config
from pave.checkpoints import patch_folder
from pave.tasks import sideworld
from pave.training import train
from pave.types import Question

OPTIONS = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
ACCELERATE = (
    *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"),
    *("--mixed_precision=no", "--dynamo_backend=no"),
)


def launch(*runs: list[str], how: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Do these runs, one after the other, in one process or in two ranks of a launcher."""
    arguments = [text for run in runs for text in ("--", *run)][1:]
    return subprocess.run(
        [sys.executable, *how, __file__, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, **OPTIONS},
    )


def wordy(question: Question) -> str:
    """Answers of one to four words, so that ranks and micro-batches hold different numbers of label tokens."""
    return " ".join(question.answers * (1 + len(question.text) % 4))


def plain(run: str, out: str, *overrides: str) -> None:
    """As `pave train`."""
    train.main(settings(run, overrides), Path(out))


def interrupted(run: str, out: str, *overrides: str) -> None:
    """The whole run, then the same with a stop in its ninth micro-step, resumed."""
    plain(run, f"{out}/whole", *overrides)
    step = train.PaveTrainer.training_step
    at_micro_step(9, interrupt)
    try:
        plain(run, f"{out}/stopped", *overrides)
    except KeyboardInterrupt:
        train.PaveTrainer.training_step = step
    train.main(settings(run, overrides), Path(out, "stopped"), resume=True)


def dead(run: str, out: str, *overrides: str) -> None:
    """Rank 1 dies."""
    at_micro_step(5, die)
    plain(run, out, *overrides)


def killed(run: str, out: str, *overrides: str) -> None:
    """For each point of a save a run that is killed there, into OUT/POINT."""
    for point in POINTS:
        # Forked before torch has done anything, which spares the imports.
        child = os.fork()
        if child == 0:
            stop_at(point, Path(out, point))
            plain(run, f"{out}/{point}", *overrides)
            os._exit(0)
        while not Path(out, point, "now").exists():
            if os.waitpid(child, os.WNOHANG) != (0, 0):
                raise SystemExit(f"{point}: the run ended by itself")
            time.sleep(0.05)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def settings(run: str, overrides: tuple[str, ...]) -> config.Config:
    """The config of a run, with answers of several lengths."""
    sideworld.Task.target = staticmethod(wordy)
    return config.load(run, overrides)


def at_micro_step(number: int, fault: Callable[[], None]) -> None:
    """Let a fault happen when so many micro-batches are done."""
    step, calls = train.PaveTrainer.training_step, itertools.count()

    def faulty(self: train.PaveTrainer, *arguments: Any) -> Any:
        if next(calls) == number:
            fault()
        return step(self, *arguments)

    train.PaveTrainer.training_step = faulty


def interrupt() -> None:
    raise KeyboardInterrupt


def die() -> None:
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)


POINTS = ("patch", "optimizer", "state", "final")


def stop_at(point: str, out: Path) -> None:
    """Stand still in the middle of the second save, or of the last, when `point` is half written."""
    write, save, rng = patch_folder.write, TrainerState.save_to_json, train.PaveTrainer._save_rng_state

    def half(file: Path) -> None:
        os.truncate(file, file.stat().st_size // 2)
        (out / "now").touch()
        time.sleep(600)

    def patch(model: Any, run: config.Config, folder: Path) -> None:
        write(model, run, folder)
        if folder.name.startswith({"patch": "checkpoint-4", "final": ".final"}.get(point, "never")):
            half(folder / patch_folder.PATCH_FILE)

    def optimizer(self: train.PaveTrainer, folder: str) -> None:
        if point == "optimizer" and Path(folder).name == "checkpoint-4":
            half(Path(folder, "optimizer.pt"))
        rng(self, folder)

    def state(self: TrainerState, file: str) -> None:
        save(self, file)
        if point == "state" and Path(file).parent.name == "checkpoint-4":
            half(Path(file))

    patch_folder.write, TrainerState.save_to_json, train.PaveTrainer._save_rng_state = patch, state, optimizer


FAULTS = {"plain": plain, "interrupted": interrupted, "dead": dead, "killed": killed}

if __name__ == "__main__":
    for last, group in itertools.groupby(sys.argv[1:], lambda text: text == "--"):
        if not last:
            fault, *rest = group
            FAULTS[fault](*rest)
