"""Find the checkpoint that a resumed run continues from."""

from __future__ import annotations

import logging
from pathlib import Path

from transformers import TrainerState, TrainingArguments

from pave.types import UserError
from pave.utils.json_files import read_json

log = logging.getLogger(__name__)
STATE_FILE = "trainer_state.json"
"""The Trainer writes it last, so it marks a complete checkpoint."""


def newest_checkpoint(out: Path) -> Path:
    """Find the newest complete checkpoint of a run. Raises UserError if there is none."""
    folders = sorted(out.glob("checkpoint-*"), key=lambda folder: int(folder.name.split("-")[1]), reverse=True)
    for folder in folders:
        try:
            read_json(folder / STATE_FILE, "the state of a finished checkpoint")
        except UserError:
            log.warning("%s: not written to its end (a killed run?); an older checkpoint is used", folder)
            continue
        return folder
    raise UserError(f"{out}: no finished checkpoint-* folder to resume from; start without resume")


def is_finished(state: TrainerState, arguments: TrainingArguments) -> bool:
    """Whether a run was stopped after its last step, so that only `final` is missing."""
    if arguments.max_steps > 0:
        return state.global_step >= arguments.max_steps
    return state.epoch >= arguments.num_train_epochs
