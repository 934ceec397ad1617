"""Experiments on kept tower features of the tiny PPLLaVA: a patch before pooling, and one of another base."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from experiments.rotate_residual_stream import turn
from torch import Tensor, nn
from transformers import set_seed

from pave.checkpoints import build, patch_folder
from pave.config import Config
from pave.data.collate import Sample, collate
from pave.data.dataset import Questions
from pave.media import feature_files
from pave.models import state_dicts
from pave.models.patched_model import Pave
from pave.training.tiny_models.optimisation import fast, fit
from pave.types import IGNORE

log = logging.getLogger(__name__)
Learns = Literal["all", "nothing", "output"]
"""What of the patch is trained beside LoRA."""
ASKED = ("which_sound", "bigger_color")
"""What the patch must tell, and what the picture tells."""
EVERY = 30
"""Steps between two exams."""


class Kept(nn.Module):
    """Stands in for PPLLaVA's tower: float[B,T,3,P,W/3], what it gave of a frame, -> float[B,T,P,W]."""

    def forward(self, kept: Tensor) -> Tensor:
        places, third = kept.shape[-2:]
        return kept.flatten(2).unflatten(2, (places, 3 * third)).float()


def main(
    config: Config,
    out: Path,
    learns: Learns = "all",
    source: Path | None = None,
    turned: bool = False,
    clips: int = 1200,
) -> dict[str, list[float]]:
    """Train patch and LoRA of a config for PPLLaVA; the exams on unseen clips are returned and written to `out`.

    What was learnt is written beside it, into a folder of that name without its ending, unless the model was turned.
    `source` is a folder with a patch to begin from; `turned` puts the language model into other coordinates first.
    Raises UserError where the patch has tensors of another shape.
    """
    seed, steps = int(config.train.get("seed", 0)), int(config.train["max_steps"])
    set_seed(seed)
    model = build.create(config)
    if turned:
        projector: Any = model.base.multi_modal_projector
        turn(model.base, projector.linear_2, seed)
    if source is not None:
        file = source / patch_folder.PATCH_FILE
        given = feature_files.read_safetensors(file).state
        state_dicts.check_same(state_dicts.shapes(model.patches.state_dict()), state_dicts.shapes(given), file)
        model.patches.load_state_dict(given)
    for name, parameter in model.patches.named_parameters():
        is_output = name.split(".")[1] in ("out", "out_norm")
        parameter.requires_grad_(learns == "all" or (learns == "output" and is_output))
    seen, unseen = (keep(model, config, split, n) for split, n in (("train", clips), ("test", 100)))
    tower: Any = model.base.vision_tower
    tower.forward = Kept().forward
    found: dict[str, list[float]] = {}
    rng = np.random.default_rng(seed)

    def losses() -> Iterator[Tensor]:
        for step in range(steps):
            if step % EVERY == 0:
                note(step)
            chosen = [seen[i] for i in rng.choice(len(seen), min(24, len(seen)), replace=False)]
            # In bfloat16 the little that a patch adds at first would be rounded away.
            with torch.autocast("cpu", enabled=False):
                loss = model(**collate(chosen, model.base.tokenizer.pad_token_id))["loss"]
            yield loss

    def note(step: int) -> None:
        for name, share in exam(model, unseen, shuffled=step in (0, steps)).items():
            found.setdefault(name, []).append(share)
        log.info("step %d: %s", step, {name: shares[-1] for name, shares in found.items()})
        out.write_text(json.dumps(found))

    fit(model, losses(), steps, rate=config.patch_lr or 1.5e-3)
    note(steps)
    if not turned:  # such a patch fits no base that a config names
        patch_folder.save(model, config, out.with_suffix(""))
    return found


@torch.no_grad()
def keep(model: Pave, config: Config, split: str, clips: int) -> list[Sample]:
    """The questions of so many clips, each with what the tower makes of its frames in place of them, in bfloat16."""
    questions = Questions(config, model.base, split, with_answers=True)
    kept: list[Sample] = []
    last, video, tower = torch.empty(0), "", cast(Any, model.base.vision_tower)
    for i, question in enumerate(questions.questions):
        if question.group not in ASKED or len(kept) == clips * len(ASKED):
            continue
        sample = questions[i]
        assert sample.pixels is not None
        if question.video != video:
            with fast():
                tokens = tower(sample.pixels[None].unflatten(2, (2, 3)).flatten(1, 2))[0]
            frames, places, width = tokens.shape
            last = tokens.bfloat16().view(frames // 2, 6, places, width // 3)
            video = question.video
        kept.append(sample._replace(pixels=last))
    return kept


@torch.no_grad()
def exam(model: Pave, samples: Sequence[Sample], shuffled: bool, batch: int = 40) -> dict[str, float]:
    """Share of right answers of each kind, and to sounds with those of the next clip, if wanted."""
    model.eval()
    kinds = {kind: list(samples[i :: len(ASKED)]) for i, kind in enumerate(ASKED)}
    if shuffled:
        heard = kinds[ASKED[0]]
        kinds["shuffled"] = [one._replace(sides=other.sides) for one, other in zip(heard, heard[1:] + heard[:1])]
    found = {}
    for kind, asked in kinds.items():
        right = []
        for i in range(0, len(asked), batch):
            told = collate(asked[i : i + batch], model.base.tokenizer.pad_token_id)
            wanted = told["labels"][:, 1:]
            places = (wanted != IGNORE).nonzero()
            same = model(**told)["logits"].argmax(-1) == wanted[wanted != IGNORE]
            right += [bool(same[places[:, 0] == row].all()) for row in range(len(wanted))]
        found[kind] = sum(right) / len(right)
    model.train()
    return found
