"""Which checkpoint a run goes on from."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from transformers import TrainerState, TrainingArguments

from pave.types import UserError

log = logging.getLogger(__name__)
STATE = "trainer_state.json"
"""What the Trainer writes last."""


def newest_checkpoint(out: Path) -> str:
    """The newest checkpoint that was written to its end: the Trainer writes trainer_state.json last."""
    for folder in sorted(out.glob("checkpoint-*"), key=lambda f: int(f.name.split("-")[1]), reverse=True):
        try:
            json.loads((folder / STATE).read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            log.warning("%s: not written to its end (a killed run?); an older checkpoint is used", folder)
            continue
        return str(folder)
    raise UserError(f"{out}: no finished checkpoint-* folder to resume from; start without resume")


def is_done(state: TrainerState, arguments: TrainingArguments) -> bool:
    """Whether a run was stopped after its last step, so that only `final` is missing."""
    if arguments.max_steps > 0:
        return state.global_step >= arguments.max_steps
    return state.epoch >= arguments.num_train_epochs
