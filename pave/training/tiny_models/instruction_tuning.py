"""The other bases learn to talk about what their towers see, and are asked what they know."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from pave.data.collate import Sample, collate, expand
from pave.models.patched_model import Pave
from pave.sideworld import scene as world
from pave.tasks import sideworld as task
from pave.training.tiny_models.architectures import ROWS, Small
from pave.training.tiny_models.llava_onevision import FAINTEST
from pave.training.tiny_models.optimisation import FIRST_SEED, SOUNDS, fast, fit
from pave.training.tiny_models.vision_distillation import encode, key_frames
from pave.training.tiny_models.vision_pretraining import NO_CAPTION, caption, grainy
from pave.types import IGNORE

EXAM_SEED = FIRST_SEED + (1 << 50)
"""Of scenes that no lesson shows."""


def views(small: Small, index: int) -> tuple[world.Scene, Tensor]:
    """A scene and its pixels float[2,t,...] as the base takes them: plain, and captioned while the sound is near."""
    scene, rng = world.scene(index), np.random.default_rng(index)
    chosen = key_frames(small.frames)
    late = chosen / world.FPS - scene.heard_at
    heard = (late > -0.8) & (late < world.SOUND_SECONDS + 0.8)
    frames = world.render(scene, list(chosen))
    captioned = caption(frames, np.where(heard, SOUNDS.index(scene.sound), NO_CAPTION), 1.0)
    return scene, torch.stack([small.base.preprocess(grainy(x, rng)) for x in (frames, captioned)])


class Looked(NamedTuple):
    """A scene as the base sees it when asked its last question, bfloat16[t,S,D] each."""

    scene: world.Scene
    last: int
    """Index of the question."""
    plain: Tensor
    captioned: Tensor
    pixels: Tensor
    """On the meta device: their shape tells positions."""
    seconds: Tensor
    """float[t]"""


def look(small: Small, scenes: int, first: int) -> list[Looked]:
    """What the base sees of so many scenes."""
    looked = []
    seconds = torch.from_numpy(key_frames(small.frames) / world.FPS).float().view(ROWS, -1).mean(1)
    for i in tqdm(range(scenes), desc="look", unit="scene"):
        scene, pixels = views(small, first + i)
        questions = task.ask(scene)
        last = i % len(questions)
        with torch.no_grad(), fast():
            plain, captioned = encode(small.base, pixels, task.prompt(questions[last])).bfloat16()
        looked.append(Looked(scene, last, plain, captioned, torch.empty_like(pixels[0], device="meta"), seconds))
    return looked


def talk(small: Small, scenes: int, steps: int, seed: int, batch: int = 16) -> None:
    """Train the language model on conversations about what the tower, which is left as it is, has looked at."""
    looked = look(small, scenes, FIRST_SEED + (seed << 32))
    model, rng = Pave(small.base, {}), np.random.default_rng(seed)

    def lessons() -> Iterator[Tensor]:
        for step in range(steps):
            # Clear captions first, faint ones later: see `base.lessons`.
            fading = float(np.clip(2 * step / steps - 0.2, 0, 1))
            chosen = [looked[i] for i in rng.choice(len(looked), min(batch, len(looked)), replace=False)]
            yield say(model, chosen, [_lesson(small.base, one, fading, rng) for one in chosen])[0]

    fit(nn.ModuleList([small.base.lm, small.base.head]), lessons(), steps, rate=1e-3)


def _lesson(base: Any, looked: Looked, fading: float, rng: np.random.Generator) -> Sample:
    """A conversation with all kinds of questions, about a scene with captions of some strength."""
    questions = task.ask(looked.scene)
    order = [int(i) for i in rng.permutation(len(questions)) if i != looked.last]
    strength = 0.0 if rng.random() < 0.15 * fading else FAINTEST ** rng.uniform(0, fading)
    plain = looked.plain.float()
    embeds = plain + strength * (looked.captioned.float() - plain)
    return _sample(base, looked, [*order, looked.last], embeds + 0.2 * torch.randn_like(embeds))


def _sample(base: Any, looked: Looked, order: Sequence[int], embeds: Tensor) -> Sample:
    questions = task.ask(looked.scene)
    turns = [(task.prompt(questions[i]), task.target(questions[i])) for i in order]
    encoded = base.chat(turns[-1][0], tuple(turns[:-1]), turns[-1][1])
    visual = base.visual_tokens(len(embeds), tuple(looked.pixels.shape[-2:]))
    return Sample(*expand(encoded.ids, encoded.labels, visual, 4096), embeds, None, {})


def say(model: Pave, looked: Sequence[Looked], samples: Sequence[Sample]) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Loss, logits float[B,L,V] and the batch of samples whose pixels are already visual tokens."""
    base, batch = model.base, collate(samples, model.base.tokenizer.pad_token_id)
    visual = base.layout(batch["pixels"])
    first = torch.arange(len(samples)) * visual.shape[1]
    embeds = model.place(batch["ids"], visual.flatten(0, 1), first)
    shapes, seconds = [one.pixels for one in looked], [one.seconds for one in looked]
    places = model.positions(batch["ids"], batch["mask"], shapes, seconds)
    hidden = base.lm(inputs_embeds=embeds, attention_mask=batch["mask"], position_ids=places, use_cache=False)
    logits = base.head(hidden.last_hidden_state)
    wanted = batch["labels"][:, 1:]
    return F.cross_entropy(logits[:, :-1].float().flatten(0, 1), wanted.flatten()), logits, batch


@torch.no_grad()
def exam(small: Small, scenes: int) -> dict[str, float]:
    """Share of right answers on scenes it never saw: each kind of question plain, and those on sounds captioned."""
    model, right = Pave(small.base, {}).eval(), dict[str, list[bool]]()
    for one in look(small, scenes, EXAM_SEED):
        question = task.ask(one.scene)[one.last]
        sights = {"": one.plain, "captioned ": one.captioned}
        samples = [_sample(small.base, one, [one.last], sight.float()) for sight in sights.values()]
        _, logits, batch = say(model, [one] * len(samples), samples)
        wanted = batch["labels"][:, 1:]
        same = (logits[:, :-1].argmax(-1) == wanted) | (wanted == IGNORE)
        for sight, answered in zip(sights, same.all(1).tolist()):
            right.setdefault(f"{sight}{question.group}", []).append(answered)
    return {name: sum(answers) / len(answers) for name, answers in sorted(right.items())}
