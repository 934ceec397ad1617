"""Conversations about random scenes, from which the language models of the tiny bases learn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from pave.data.collate import Sample, expand_video_tokens
from pave.models.base import Base
from pave.sideworld import scene as world
from pave.tasks import sideworld

MIN_CAPTION_STRENGTH = 0.03
"""Of captions, blended into features."""
MAX_LENGTH = 4096
T = TypeVar("T")


class SceneFeatures(NamedTuple):
    """A scene as a frozen part of the base encodes it, bfloat16[T,S,C] each."""

    scene: world.Scene
    plain: Tensor
    captioned: Tensor


def random_batches(
    items: Sequence[T], steps: int, batch: int, delay: float, rng: np.random.Generator
) -> Iterator[tuple[float, list[T]]]:
    """Yield for each step how much the captions have faded, 0 to 1, and a random batch.

    Captions are clear at first, for `delay` of half the steps, then of all strengths down to faint: a model that reads
    only clear ones is blind to the small changes that a patch begins with.
    """
    for step in range(steps):
        fading = float(np.clip(2 * step / steps - delay, 0, 1))
        chosen = rng.choice(len(items), min(batch, len(items)), replace=False)
        yield fading, [items[i] for i in chosen]


def blend_captions(features: SceneFeatures, fading: float, rng: np.random.Generator) -> Tensor:
    """Features with captions of a random strength, or none, and with noise."""
    strength = 0.0 if rng.random() < 0.15 * fading else MIN_CAPTION_STRENGTH ** rng.uniform(0, fading)
    plain = features.plain.float()
    blended = plain + strength * (features.captioned.float() - plain)
    return blended + 0.2 * torch.randn_like(blended)


def make_conversation(
    base: Base, scene: world.Scene, order: Sequence[int], features: Tensor, size: tuple[int, ...] = ()
) -> Sample:
    """Ask questions about a scene in this order; `features` stand in for the pixels of frames of this size."""
    questions = sideworld.scene_questions(scene)
    turns = [(sideworld.Task().prompt(questions[i]), sideworld.Task().target(questions[i])) for i in order]
    *history, (question, answer) = turns

    chat = base.chat(question, tuple(history), answer)
    visual = base.num_visual_tokens(len(features), size)
    ids, labels = expand_video_tokens(chat.ids, chat.labels, visual, MAX_LENGTH)
    return Sample(ids, labels, features, None, {})
