"""Vision stages of the other tiny bases: what the shipped base's tower sees, and what a question is about."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from pave.models.base import Base
from pave.models.bases.llava_onevision import Base as LlavaOnevision
from pave.models.bases.ppllava import Base as PPLLaVA
from pave.sideworld import scene as world
from pave.tasks import sideworld
from pave.training.tiny_models.architectures import TOKEN_ROWS, TinyBase
from pave.training.tiny_models.optimisation import optimise
from pave.training.tiny_models.scenes import (
    SceneStream,
    add_noise,
    draw_captions,
    key_frames,
    random_captions,
    scene_facts,
    thing_heights,
)
from pave.training.tiny_models.vision_pretraining import FactHead, both_halves

CLIP_FRAMES = 8
"""Neighbouring key frames of an example."""


class DistillationStream(SceneStream[tuple[Tensor, ...]]):
    """Endless neighbouring key frames: pixels for the base, pixels for the teacher, and facts.

    Facts int[3,2], heights float[t,2] and captions int[t,2] as in `FrameStream`, for the base's t rows of tokens.
    """

    def __init__(self, tiny: TinyBase, teacher: LlavaOnevision, seed: int) -> None:
        super().__init__(seed)
        self.base, self.teacher, self.key_frames = tiny.base, teacher, key_frames(tiny.frames)
        self.frames_per_row = tiny.frames // TOKEN_ROWS

    def make_example(self, scene: world.Scene, rng: np.random.Generator) -> tuple[Tensor, ...]:
        """Render frames with one random caption for each row of tokens."""
        start = rng.integers(0, len(self.key_frames) - CLIP_FRAMES, endpoint=True)
        frames = self.key_frames[start : start + CLIP_FRAMES]
        rows = CLIP_FRAMES // self.frames_per_row
        captions = random_captions(rows, rng)
        strength = rng.uniform(0.4, 1.0)
        images = world.render(scene, list(frames))
        images = add_noise(draw_captions(images, captions.repeat(self.frames_per_row), strength), rng)

        heights = thing_heights(scene, frames).reshape(rows, self.frames_per_row, 2).mean(1)
        return (
            self.base.preprocess(images),
            self.teacher.preprocess(images),
            scene_facts(scene),
            torch.from_numpy(heights).float(),
            both_halves(captions),
        )


def distill_vision(tiny: TinyBase, teacher: LlavaOnevision, steps: int, seed: int, batch: int = 16) -> None:
    """Train tower and projector to give, for each quarter of the picture, the visual token of the teacher."""
    head = FactHead(tiny.base.embed_dim)
    modules = dict(tiny.base.named_children())
    learning = [modules[name] for name in ("vision_tower", "multi_modal_projector") if name in modules]
    tiny.base.eval()
    deviation: Tensor | None = None

    def loss(example: Sequence[Tensor]) -> Tensor:
        nonlocal deviation
        pixels, teacher_pixels, *facts = example
        with torch.no_grad():
            targets = teacher.encode(teacher_pixels).embeds.float()
            targets = targets.unflatten(1, (pixels.shape[1], -1)).mean(2)
            if deviation is None:
                deviation = targets.flatten(0, -2).std(0)
        tokens = tiny.quarter_tokens(encode_visual_tokens(tiny.base, pixels).float())
        return head(tokens, *facts) + 3 * F.mse_loss(tokens / deviation, targets / deviation)

    examples = DataLoader(DistillationStream(tiny, teacher, seed), batch)
    optimise(nn.ModuleList([*learning, head]), map(loss, examples), steps, rate=2e-3)


class RelevanceStream(SceneStream[tuple[Tensor, Tensor, Tensor]]):
    """Endless scenes with a question: pixels float[t,...], prompt_ids int[L], relevant patches bool[T,P].

    Relevant are those that show the thing asked about, or either thing where the sound is asked about.
    """

    def __init__(self, base: PPLLaVA, frames: int, seed: int) -> None:
        super().__init__(seed)
        self.base, self.key_frames = base, key_frames(frames)

    def make_example(self, scene: world.Scene, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Ask one question, and find the patches whose middle is on a thing that it is about."""
        question = sideworld.scene_questions(scene)[scene.seed % len(sideworld.BASE_KINDS)]
        things_by_kind = {
            "bigger_color": [scene.bigger],
            "shape_of_color": [scene.things[scene.asked]],
            "left_shape": [scene.things[0]],
        }

        middles = (np.arange(self.base.edge) + 0.5) * world.SIZE / self.base.edge
        is_relevant = np.zeros((len(self.key_frames), self.base.edge, self.base.edge), bool)
        for thing in things_by_kind.get(question.group, scene.things):
            x, y = world.center_at(thing, self.key_frames / world.FPS)
            in_column = np.abs(middles - x[:, None]) < thing.radius + 2
            in_row = np.abs(middles - y[:, None]) < thing.radius + 2
            is_relevant |= in_row[:, :, None] & in_column[:, None]

        pixels = self.base.preprocess(add_noise(world.render(scene, list(self.key_frames)), rng))
        prompt_ids = self.base.prompt_tokenizer(
            sideworld.Task().prompt(question), padding="max_length", max_length=16
        ).input_ids
        return pixels, torch.tensor(prompt_ids), torch.from_numpy(is_relevant).flatten(1)


def train_prompt_relevance(tiny: TinyBase, steps: int, seed: int, batch: int = 8) -> None:
    """Train PPLLaVA's comparison of patches and question to find the relevant patches; both towers are frozen."""
    base = tiny.base
    assert isinstance(base, PPLLaVA)
    projector = base.multi_modal_projector
    learning = [projector.clip_visual_ln, projector.clip_visual_projection, projector.clip_text_projection]

    def loss(example: Sequence[Tensor]) -> Tensor:
        pixels, prompt_ids, is_relevant = example
        with torch.no_grad():
            tokens = base.vision_tower(pixels.unflatten(2, (2, 3)).flatten(1, 2))
        weights = projector.relevance(tokens, projector.encode_prompt(prompt_ids))
        return -(weights * is_relevant).flatten(1).sum(1).clamp(min=1e-6).log().mean()

    examples = DataLoader(RelevanceStream(base, tiny.frames, seed), batch)
    optimise(nn.ModuleList(learning), map(loss, examples), steps, rate=2e-3)


def encode_visual_tokens(base: Base, pixels: Tensor, question: str = "") -> Tensor:
    """Encode pixels into visual tokens float[B,t,S,D]; those of a prompt-conditioned base are for this question."""
    if not base.prompt_conditioned:
        return base.encode(pixels).embeds
    prompt_ids = torch.tensor([base.chat(question).prompt_ids])
    return base.encode(pixels, prompt_ids.expand(len(pixels), -1)).embeds
