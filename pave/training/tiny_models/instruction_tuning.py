"""The other tiny bases learn to answer questions about what their towers see, and are evaluated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from pave.data.collate import Sample, collate
from pave.models.patched_model import PatchedModel
from pave.sideworld import scene as world
from pave.tasks import sideworld
from pave.training.tiny_models.architectures import TOKEN_ROWS, TinyBase
from pave.training.tiny_models.conversations import SceneFeatures, blend_captions, make_conversation, random_batches
from pave.training.tiny_models.optimisation import bfloat16_autocast, optimise
from pave.training.tiny_models.scenes import FIRST_SEED, add_noise, first_seed, key_frames, render_captioned
from pave.training.tiny_models.vision_distillation import encode_visual_tokens
from pave.types import IGNORE_INDEX

EVALUATION_SEED = FIRST_SEED + (1 << 50)
"""Of scenes that no training shows."""


class EncodedScene(NamedTuple):
    """A scene as the base encodes it for one of its questions."""

    features: SceneFeatures
    """Visual tokens, [t,S,D]."""
    question: int
    pixels: Tensor
    """On the meta device: position ids follow their shape."""
    seconds: Tensor
    """float[t]"""


def encode_scenes(tiny: TinyBase, count: int, first: int) -> list[EncodedScene]:
    """Encode scenes from seed `first` on, each for another of its questions."""
    encoded = []
    frames = key_frames(tiny.frames)
    seconds = torch.from_numpy(frames / world.FPS).float().view(TOKEN_ROWS, -1).mean(1)
    for i in tqdm(range(count), desc="encode", unit="scene"):
        scene, rng = world.draw_scene(first + i), np.random.default_rng(first + i)
        views = [tiny.base.preprocess(add_noise(view, rng)) for view in render_captioned(scene, frames)]
        questions = sideworld.scene_questions(scene)
        index = i % len(questions)
        with torch.no_grad(), bfloat16_autocast():
            tokens = encode_visual_tokens(
                tiny.base, torch.stack(views), sideworld.Task().prompt(questions[index])
            ).bfloat16()
        pixels = torch.empty_like(views[0], device="meta")
        encoded.append(EncodedScene(SceneFeatures(scene, *tokens), index, pixels, seconds))
    return encoded


def instruction_tune(tiny: TinyBase, scenes: int, steps: int, seed: int, batch: int = 16) -> None:
    """Train the language model on conversations that ask all kinds of questions; tower and projector are frozen."""
    encoded = encode_scenes(tiny, scenes, first_seed(seed))
    model, rng = PatchedModel(tiny.base, {}), np.random.default_rng(seed)

    def losses() -> Iterator[Tensor]:
        for fading, chosen in random_batches(encoded, steps, batch, 0.2, rng):
            samples = []
            for scene in chosen:
                # The question that the visual tokens were made for comes last.
                order = rng.permutation(len(sideworld.scene_questions(scene.features.scene))).tolist()
                order.remove(scene.question)
                order.append(scene.question)
                samples.append(make_sample(tiny, scene, order, blend_captions(scene.features, fading, rng)))
            yield forward_cached(model, chosen, samples)[0]

    optimise(nn.ModuleList([tiny.base.llm, tiny.base.lm_head]), losses(), steps, rate=1e-3)


def make_sample(tiny: TinyBase, scene: EncodedScene, order: Sequence[int], tokens: Tensor) -> Sample:
    """Ask questions about a scene in this order, with visual tokens float[t,S,D] in place of pixels."""
    size = tuple(scene.pixels.shape[-2:])
    return make_conversation(tiny.base, scene.features.scene, order, tokens, size)


def forward_cached(
    model: PatchedModel, scenes: Sequence[EncodedScene], samples: Sequence[Sample]
) -> tuple[Tensor, Tensor, Tensor]:
    """Run samples whose pixels are already visual tokens: loss, logits float[B,L-1,V] and their labels int[B,L-1]."""
    base = model.base
    batch = collate(samples, base.tokenizer.pad_token_id)
    visual = base.arrange_tokens(batch["pixels"])
    first = torch.arange(len(samples)) * visual.shape[1]
    embeds = model.scatter_visual_tokens(batch["ids"], visual.flatten(0, 1), first)

    pixels, seconds = [scene.pixels for scene in scenes], [scene.seconds for scene in scenes]
    positions = model.position_ids(batch["ids"], batch["mask"], pixels, seconds)
    hidden = base.llm(inputs_embeds=embeds, attention_mask=batch["mask"], position_ids=positions, use_cache=False)
    logits, labels = base.lm_head(hidden.last_hidden_state)[:, :-1], batch["labels"][:, 1:]
    return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten()), logits, labels


@torch.no_grad()
def evaluate_tiny(tiny: TinyBase, scenes: int) -> dict[str, float]:
    """Share of right answers on unseen scenes, by kind of question, plain and captioned."""
    model = PatchedModel(tiny.base, {}).eval()
    answers: dict[str, list[bool]] = {}
    for scene in encode_scenes(tiny, scenes, EVALUATION_SEED):
        kind = sideworld.scene_questions(scene.features.scene)[scene.question].group
        views = {kind: scene.features.plain, f"captioned {kind}": scene.features.captioned}
        samples = [make_sample(tiny, scene, [scene.question], tokens.float()) for tokens in views.values()]
        _, logits, labels = forward_cached(model, [scene] * len(samples), samples)
        is_right = ((logits.argmax(-1) == labels) | (labels == IGNORE_INDEX)).all(1)
        for name, right in zip(views, is_right.tolist()):
            answers.setdefault(name, []).append(right)
    return {name: sum(rights) / len(rights) for name, rights in sorted(answers.items())}
