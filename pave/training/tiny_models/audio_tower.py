"""`pave pretrain audio`: the tiny ImageBind audio tower learns to tell what sounds, and when."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from pave.media.audio import mel_windows
from pave.models.encoders import imagebind_audio
from pave.sideworld import scene as world
from pave.training.tiny_models.optimisation import FIRST_SEED, SOUNDS, fit


class Listening(IterableDataset[tuple[Tensor, Tensor, Tensor]]):
    """Endless sounds: mel windows float[7,1,128,204], what is heard float[7,8], and when (float[7,8], by 1/4 s)."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for index in itertools.count(FIRST_SEED + (self.seed << 32)):
            scene = world.scene(index)
            mel = mel_windows(torch.from_numpy(world.sound(scene))[None])
            edges = torch.arange(len(mel))[:, None] + torch.arange(9) / 4
            overlap = edges[:, 1:].clamp(max=scene.heard_at + world.SOUND_SECONDS) - edges[:, :-1].clamp(
                min=scene.heard_at
            )
            when = (overlap / 0.25).clamp(0, 1)
            which = F.one_hot(torch.tensor(SOUNDS.index(scene.sound)), len(SOUNDS))
            yield mel, which * (when.sum(1, keepdim=True) * 0.25 / world.SOUND_SECONDS).clamp(max=1), when


def learn(out: Path, steps: int = 400, batch: int = 16, seed: int = 0) -> None:
    """Train the tiny ImageBind audio tower to tell what sounds in a window, and when; writes safetensors."""
    torch.manual_seed(seed)
    tower = imagebind_audio.Tower(width=64, depth=2, heads=4, out_dim=64)
    reader = nn.Linear(64, len(SOUNDS) + 8)
    loader = DataLoader(Listening(seed), batch, num_workers=1)

    def hear(lesson: list[Tensor]) -> Tensor:
        mel, which, when = (x.flatten(0, 1) for x in lesson)
        told_which, told_when = reader(tower(mel)).split((len(SOUNDS), 8), 1)
        return F.binary_cross_entropy_with_logits(told_which, which) + F.binary_cross_entropy_with_logits(
            told_when, when
        )

    fit(nn.ModuleList([tower, reader]), map(hear, loader), steps, rate=1e-3)
    imagebind_audio.save(tower.eval(), out)
