"""Training with faults on demand, in processes of its own.

python [-m torch.distributed.run ...] fault_injection.py FAULT RUN.yaml OUT [key=value ...] [-- FAULT RUN.yaml OUT ...]
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
from pave.config import Config
from pave.models.patched_model import PatchedModel
from pave.tasks.sideworld import Task
from pave.training import train
from pave.types import Question

OPTIONS = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
ACCELERATE = (
    *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"),
    *("--mixed_precision=no", "--dynamo_backend=no"),
)


def launch(*runs: list[str], launcher: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Do these runs, one after the other, in one process or in two ranks of a launcher."""
    arguments = [text for run in runs for text in ("--", *run)][1:]
    return subprocess.run(
        [sys.executable, *launcher, __file__, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, **OPTIONS},
    )


def target_of_several_lengths(task: Task, question: Question) -> str:
    """Answers of one to four words, so that ranks and micro-batches hold different numbers of label tokens."""
    return " ".join(question.answers * (1 + len(question.text) % 4))


def fail_after(micro_batches: int, fault: Callable[[], None]) -> Callable[..., Any]:
    """A PaveTrainer.training_step with a fault once so many micro-batches are done."""
    training_step, calls = train.PaveTrainer.training_step, itertools.count()

    def faulty_step(self: train.PaveTrainer, *arguments: Any) -> Any:
        if next(calls) == micro_batches:
            fault()
        return training_step(self, *arguments)

    return faulty_step


def interrupt() -> None:
    raise KeyboardInterrupt


def kill_rank_1() -> None:
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)


def run_plain(run: str, out: str, *overrides: str, resume: bool = False) -> None:
    """Train as `pave train`, on answers of several lengths."""
    Task.target = target_of_several_lengths
    train.main(config.load(run, overrides), Path(out), resume)


def run_interrupted(run: str, out: str, *overrides: str) -> None:
    """Do the whole run, then the same with a stop in its fifth step, and resume it."""
    run_plain(run, f"{out}/whole", *overrides)
    training_step = train.PaveTrainer.training_step
    train.PaveTrainer.training_step = fail_after(9, interrupt)
    try:
        run_plain(run, f"{out}/stopped", *overrides)
    except KeyboardInterrupt:
        train.PaveTrainer.training_step = training_step
    run_plain(run, f"{out}/stopped", *overrides, resume=True)


def run_with_dead_rank(run: str, out: str, *overrides: str) -> None:
    """Kill rank 1 in the third step."""
    train.PaveTrainer.training_step = fail_after(5, kill_rank_1)
    run_plain(run, out, *overrides)


def run_killed(run: str, out: str, *overrides: str) -> None:
    """Do for each point of a save a run that is killed there, into OUT/POINT."""
    for point in POINTS:
        # Forked before torch has done anything, which spares the imports.
        child = os.fork()
        if child == 0:
            halt_at(point, Path(out, point))
            run_plain(run, f"{out}/{point}", *overrides)
            os._exit(0)
        while not Path(out, point, "halted").exists():
            if os.waitpid(child, os.WNOHANG) != (0, 0):
                raise SystemExit(f"{point}: the run ended by itself")
            time.sleep(0.05)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


POINTS = ("patch", "optimizer", "state", "final")


def halt_at(point: str, out: Path) -> None:
    """Stand still in the middle of the second save, or of the last, when the file of `point` is half written."""
    write, save_to_json = patch_folder.write, TrainerState.save_to_json
    save_rng_state = train.PaveTrainer._save_rng_state

    def halve(file: Path) -> None:
        os.truncate(file, file.stat().st_size // 2)
        (out / "halted").touch()
        time.sleep(600)

    def write_half_patch(model: PatchedModel, run: Config, folder: Path) -> None:
        write(model, run, folder)
        if folder.name.startswith({"patch": "checkpoint-4", "final": ".final"}.get(point, "never")):
            halve(folder / patch_folder.PATCH_FILE)

    def halve_optimizer(self: train.PaveTrainer, folder: str) -> None:
        if point == "optimizer" and Path(folder).name == "checkpoint-4":
            halve(Path(folder, "optimizer.pt"))
        save_rng_state(self, folder)

    def save_half_state(self: TrainerState, file: str) -> None:
        save_to_json(self, file)
        if point == "state" and Path(file).parent.name == "checkpoint-4":
            halve(Path(file))

    patch_folder.write, TrainerState.save_to_json = write_half_patch, save_half_state
    train.PaveTrainer._save_rng_state = halve_optimizer


RUNS = {"plain": run_plain, "interrupted": run_interrupted, "dead": run_with_dead_rank, "killed": run_killed}

if __name__ == "__main__":
    for is_separator, words in itertools.groupby(sys.argv[1:], lambda word: word == "--"):
        if not is_separator:
            kind, *run_arguments = words
            RUNS[kind](*run_arguments)
