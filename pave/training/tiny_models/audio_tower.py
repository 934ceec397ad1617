"""`pave pretrain audio`: the tiny ImageBind audio tower learns what sounds, and when."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from pave.media.audio import mel_windows
from pave.models.encoders import imagebind_audio
from pave.sideworld import scene as world
from pave.training.tiny_models.optimisation import optimise
from pave.training.tiny_models.scenes import SOUNDS, SceneStream

QUARTERS = 8
"""Quarters of a second in a window of sound."""


class SoundStream(SceneStream[tuple[Tensor, Tensor, Tensor]]):
    """Endless sounds: mel windows float[7,1,128,204], which sound float[7,8], which quarter seconds float[7,8]."""

    def make_example(self, scene: world.Scene, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the share of each quarter second that the sound fills."""
        mel = mel_windows(torch.from_numpy(world.synthesize_sound(scene))[None])
        edges = torch.arange(len(mel))[:, None] + torch.arange(QUARTERS + 1) / 4
        start, end = scene.heard_at, scene.heard_at + world.SOUND_SECONDS
        overlap = edges[:, 1:].clamp(max=end) - edges[:, :-1].clamp(min=start)
        quarter_shares = (overlap / 0.25).clamp(0, 1)

        sound = F.one_hot(torch.tensor(SOUNDS.index(scene.sound)), len(SOUNDS))
        heard_share = (quarter_shares.sum(1, keepdim=True) * 0.25 / world.SOUND_SECONDS).clamp(max=1)
        return mel, sound * heard_share, quarter_shares


def pretrain(out: Path, steps: int = 400, batch: int = 16, seed: int = 0) -> None:
    """Train the tiny ImageBind audio tower to tell what sounds in a window, and when; write it as safetensors."""
    torch.manual_seed(seed)
    tower = imagebind_audio.Tower(width=64, depth=2, heads=4, out_dim=64)
    classifier = nn.Linear(64, len(SOUNDS) + QUARTERS)
    loader = DataLoader(SoundStream(seed), batch, num_workers=1)

    def loss(example: Sequence[Tensor]) -> Tensor:
        mel, sounds, quarter_shares = [x.flatten(0, 1) for x in example]
        sound_logits, quarter_logits = classifier(tower(mel)).split((len(SOUNDS), QUARTERS), 1)
        sound_loss = F.binary_cross_entropy_with_logits(sound_logits, sounds)
        return sound_loss + F.binary_cross_entropy_with_logits(quarter_logits, quarter_shares)

    optimise(nn.ModuleList([tower, classifier]), map(loss, loader), steps, rate=1e-3)
    imagebind_audio.save(tower.eval(), out)
