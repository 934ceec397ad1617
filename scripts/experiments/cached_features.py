"""Train a patch of the tiny PPLLaVA on cached tower features: before pooling, or beginning with that of another base.

PYTHONPATH=scripts python -m experiments.cached_features CONFIG OUT.json [--train-part output] [key=value ...]
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from experiments.rotate_residual_stream import rotate_residual_stream
from torch import Tensor, nn
from transformers import set_seed

from pave import config as configs
from pave.checkpoints import build, patch_folder
from pave.config import Config
from pave.data.collate import Sample, collate
from pave.data.dataset import QuestionDataset
from pave.media import feature_files
from pave.models import state_dicts
from pave.models.bases.ppllava import Base as PPLLaVA
from pave.models.patched_model import PatchedModel
from pave.training.tiny_models.optimisation import bfloat16_autocast, optimise
from pave.types import IGNORE_INDEX

log = logging.getLogger(__name__)
TrainPart = Literal["all", "nothing", "output"]
"""What of the patch is trained beside LoRA."""
KINDS = ("which_sound", "bigger_color")
"""Of questions: what the patch must tell, and what the picture tells."""
EVALUATION_STEPS = 30
"""Steps from one evaluation to the next."""


class CachedTower(nn.Module):
    """Stand in for PPLLaVA's tower: its features of frames float[B,T,3,P,W/3], stored as pixels, -> float[B,T,P,W]."""

    def forward(self, features: Tensor) -> Tensor:
        patches, third = features.shape[-2:]
        return features.flatten(2).unflatten(2, (patches, 3 * third)).float()


def train_on_cached_features(
    config: Config,
    out: Path,
    train_part: TrainPart = "all",
    source: Path | None = None,
    rotate: bool = False,
    clips: int = 1200,
) -> dict[str, list[float]]:
    """Train patch and LoRA of a config for PPLLaVA; return and write to `out` the scores on unseen clips.

    The trained folder is `out` without its suffix, unless the model was rotated. `source` is a folder with a patch to
    begin from; `rotate` puts the language model into other coordinates first. Raises UserError where the patch has
    tensors of another shape.
    """
    seed, steps = int(config.train.get("seed", 0)), int(config.train["max_steps"])
    set_seed(seed)
    model = build.create(config)
    base = model.base
    assert isinstance(base, PPLLaVA)
    if rotate:
        rotate_residual_stream(base, base.multi_modal_projector.linear_2, seed)
    if source is not None:
        load_patches(model, source / patch_folder.PATCH_FILE)
    for name, parameter in model.patches.named_parameters():
        is_output = name.split(".")[1] in ("out", "out_norm")
        parameter.requires_grad_(train_part == "all" or (train_part == "output" and is_output))

    train_samples = cache_features(model, config, "train", clips)
    test_samples = cache_features(model, config, "test", 100)
    # Only the method: the module keeps its weights, which belong to the base.
    base.vision_tower.forward = CachedTower().forward
    scores: dict[str, list[float]] = {}
    rng = np.random.default_rng(seed)

    def losses() -> Iterator[Tensor]:
        for step in range(steps):
            if step % EVALUATION_STEPS == 0:
                record_scores(step)
            chosen = rng.choice(len(train_samples), min(24, len(train_samples)), replace=False)
            batch = collate([train_samples[i] for i in chosen], base.tokenizer.pad_token_id)
            # In bfloat16 the little that a patch adds at first would be rounded away.
            with torch.autocast("cpu", enabled=False):
                loss = model(**batch)["loss"]
            yield loss

    def record_scores(step: int) -> None:
        for name, score in evaluate(model, test_samples, shuffled=step in (0, steps)).items():
            scores.setdefault(name, []).append(score)
        log.info("step %d: %s", step, {name: values[-1] for name, values in scores.items()})
        out.write_text(json.dumps(scores))

    optimise(model, losses(), steps, rate=config.patch_lr or 1.5e-3)
    record_scores(steps)
    if not rotate:  # such a patch fits no base that a config names
        patch_folder.save(model, config, out.with_suffix(""))
    return scores


def load_patches(model: PatchedModel, file: Path) -> None:
    """Replace the weights of the patches. Raises UserError for tensors of other names or shapes."""
    state = feature_files.read_safetensors(file).state
    expected = state_dicts.shapes(model.patches.state_dict())
    state_dicts.check_same(expected, state_dicts.shapes(state), file)
    model.patches.load_state_dict(state)


@torch.no_grad()
def cache_features(model: PatchedModel, config: Config, split: str, clips: int) -> list[Sample]:
    """Load the questions of so many clips, with the tower's features in bfloat16 in place of the frames."""
    base = model.base
    assert isinstance(base, PPLLaVA)
    questions = QuestionDataset(config, base, split, with_answers=True)
    samples: list[Sample] = []
    video, features = "", torch.empty(0)
    for i, question in enumerate(questions.questions):
        if question.group not in KINDS or len(samples) == clips * len(KINDS):
            continue
        sample = questions[i]
        assert sample.pixels is not None
        if question.video != video:
            with bfloat16_autocast():
                tokens = base.vision_tower(sample.pixels[None].unflatten(2, (2, 3)).flatten(1, 2))[0]
            # In the shape of pairs of frames with three channels, as the base takes pixels.
            frames, patches, width = tokens.shape
            features = tokens.bfloat16().view(frames // 2, 6, patches, width // 3)
            video = question.video
        samples.append(sample._replace(pixels=features))
    return samples


@torch.no_grad()
def evaluate(model: PatchedModel, samples: Sequence[Sample], shuffled: bool, batch: int = 40) -> dict[str, float]:
    """Share of right answers of each kind, and, if `shuffled`, to sounds with the sound of the next clip."""
    model.eval()
    samples_by_kind = {kind: list(samples[i :: len(KINDS)]) for i, kind in enumerate(KINDS)}
    if shuffled:
        sounds = samples_by_kind[KINDS[0]]
        next_sounds = [*sounds[1:], sounds[0]]
        samples_by_kind["shuffled"] = [a._replace(sides=b.sides) for a, b in zip(sounds, next_sounds)]

    scores = {}
    for kind, kind_samples in samples_by_kind.items():
        is_right: list[bool] = []
        for start in range(0, len(kind_samples), batch):
            inputs = collate(kind_samples[start : start + batch], model.base.tokenizer.pad_token_id)
            labels = inputs["labels"][:, 1:]
            rows = (labels != IGNORE_INDEX).nonzero()[:, 0]
            is_same = model(**inputs)["logits"].argmax(-1) == labels[labels != IGNORE_INDEX]
            is_right += [bool(is_same[rows == row].all()) for row in range(len(labels))]
        scores[kind] = sum(is_right) / len(is_right)
    model.train()
    return scores


def main() -> None:
    """Run one experiment from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("out", type=Path, help="scores, .json; the trained folder is named alike, without .json")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--train-part", choices=["all", "nothing", "output"], default="all", help="of the patch")
    parser.add_argument("--source", type=Path, help="folder with a patch to begin from")
    parser.add_argument("--rotate", action="store_true", help="put the language model into other coordinates")
    arguments = parser.parse_intermixed_args()
    config = configs.load(arguments.config, arguments.overrides)
    train_on_cached_features(config, arguments.out, arguments.train_part, arguments.source, arguments.rotate)


if __name__ == "__main__":
    main()
