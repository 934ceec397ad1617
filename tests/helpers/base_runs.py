"""What tests of `qwen2_5_vl` and others share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.tiny_bases import make_qwen, randomise
from pave.checkpoints import build
from pave.config import BaseConfig, Config, DataConfig, LoraConfig, PatchConfig
from pave.data.collate import Sample, collate
from pave.data.dataset import make_sample
from pave.models import lora
from pave.models.patched_model import Pave
from pave.types import Clip, SideTokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_qwen(tmp_path_factory.mktemp("qwen"))


@pytest.fixture
def config(folder: Path) -> Config:
    return Config(
        base=BaseConfig(name="qwen2_5_vl", path=str(folder), frames=6, newline="no_token", dtype="float32"),
        sides={"audio": PatchConfig(side_dim=12, hidden_dim=16, side_hidden_dim=16)},
        lora=LoraConfig(r=2, alpha=4, dropout=0.0),
        data=DataConfig(max_length=256),
    )


def make_samples(config: Config, base: Any, sizes: list[tuple[int, int]], said: str | None) -> list[Sample]:
    """Videos of noise of these sizes, of different speed; all but the first with sound."""
    samples = []
    for i, size in enumerate(sizes):
        frames = np.random.default_rng(i).integers(0, 256, (config.base.frames, *size, 3), np.uint8)
        clip = Clip(frames, np.arange(config.base.frames) * (0.5 + i))
        side = SideTokens(torch.randn(6, 1, 12, generator=torch.Generator().manual_seed(i))) if i else None
        samples.append(make_sample(config, base, f"what is heard{' a dog' * i}?", clip, {"audio": side}, answer=said))
    return samples


def make_batch(samples: list[Sample], pad_id: int, left: bool = False) -> dict[str, Any]:
    """A batch; padded at the left it is for generation, without labels."""
    batch = collate(samples, pad_id, left)
    if left:
        del batch["labels"]
    return batch


def make_trained(config: Config) -> Pave:
    model = build.create(config).eval()
    randomise([*model.patches.parameters(), *lora.state(model.base.hf).values()])
    return model
