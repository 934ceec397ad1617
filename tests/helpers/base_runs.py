"""Run any tiny base: its config, videos of noise, batches, and a model whose patch does something."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from helpers import tiny_model
from helpers.panda_folder import make_panda
from helpers.tiny_bases import make_internvl, make_original, make_port, make_ppllava, make_qwen, make_qwen3, randomise
from helpers.tiny_model import TinySetup
from pave.checkpoints import build
from pave.config import BaseConfig, Config, DataConfig, LoraConfig, PatchConfig
from pave.data.collate import Sample, collate
from pave.data.dataset import make_sample
from pave.models import lora
from pave.models.base import Base
from pave.models.patched_model import PatchedModel
from pave.types import IGNORE_INDEX, Clip, SideTokens

ANSWER = "a dog barks"
SIDE_DIM = 12


@dataclass(frozen=True)
class BaseCase:
    """A tiny base and what is known of it."""

    name: str
    make: Callable[[Path], Path]
    frames: int
    visual_tokens: tuple[int, int]
    """Of a video for each of `sizes`."""
    sizes: tuple[tuple[int, int], tuple[int, int]] = ((84, 112), (112, 56))
    """Height and width of the frames of two videos."""
    newline: str = "no_token"
    answer_end: str = "</s>"
    """What a supervised answer ends with."""
    has_official_labels: bool = True

    def config(self, folder: Path) -> Config:
        """A config with an audio patch and LoRA on the base in a folder."""
        return Config(
            base=BaseConfig(
                name=self.name, path=str(folder), frames=self.frames, newline=self.newline, dtype="float32"
            ),
            sides={"audio": PatchConfig(side_dim=SIDE_DIM, hidden_dim=16, side_hidden_dim=16)},
            lora=LoraConfig(r=2, alpha=4, dropout=0.0),
            data=DataConfig(max_length=512),
        )


QWEN_END = "<|im_end|>\n"
CASES = {
    "llava_onevision": BaseCase(
        "llava_onevision", tiny_model.make_base, 4, (8, 8), newline="grid", answer_end=QWEN_END
    ),
    "video_llava port": BaseCase("video_llava", make_port, 8, (40, 40), has_official_labels=False),
    "video_llava original": BaseCase("video_llava", make_original, 8, (40, 40), has_official_labels=False),
    "qwen2_5_vl": BaseCase("qwen2_5_vl", make_qwen, 6, (36, 24), answer_end=QWEN_END),
    "qwen3_vl": BaseCase("qwen3_vl", make_qwen3, 6, (36, 24), ((96, 128), (128, 64)), answer_end=QWEN_END),
    "internvl": BaseCase("internvl", make_internvl, 4, (16, 16), answer_end=QWEN_END),
    "video_panda": BaseCase("video_panda", make_panda, 4, (84, 64), ((60, 60), (45, 80)), has_official_labels=False),
    "ppllava": BaseCase("ppllava", make_ppllava, 4, (8, 8), ((40, 30), (40, 61))),
}
"""By name, with what tells two of one name apart."""


def with_frames(config: Config, frames: int) -> Config:
    """The same config with another number of key frames."""
    return replace(config, base=replace(config.base, frames=frames))


def tiny_run_config(config: Config, tiny_setup: TinySetup) -> Config:
    """The base of a config in a run of two steps on the tiny data."""
    return replace(tiny_model.make_config(*tiny_setup, max_steps=2), base=config.base)


def make_samples(
    config: Config, base: Base, sizes: Sequence[tuple[int, int]], answer: str | None = ANSWER
) -> list[Sample]:
    """Videos of noise of these sizes, of different speed; all but the first with sound."""
    samples = []
    for i, size in enumerate(sizes):
        frames = np.random.default_rng(i).integers(0, 256, (config.base.frames, *size, 3), np.uint8)
        clip = Clip(frames, np.arange(config.base.frames) * (0.5 + i))
        sound = SideTokens(torch.randn(6, 1, SIDE_DIM, generator=torch.Generator().manual_seed(i))) if i else None
        question = f"what is heard{' a dog' * i}?"
        samples.append(make_sample(config, base, question, clip, {"audio": sound}, answer=answer))
    return samples


def make_batch(samples: Sequence[Sample], pad_id: int, left: bool = False) -> dict[str, Any]:
    """A batch; padded at the left it is for generation, without labels."""
    batch = collate(samples, pad_id, left)
    if left:
        del batch["labels"]
    return batch


def with_all_labels(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch with a label at every position but the first, so that the model gives all logits."""
    return {**batch, "labels": torch.where(batch["mask"], batch["ids"].clamp(min=0), IGNORE_INDEX)}


def compute_logits(model: PatchedModel, batch: dict[str, Any], **changes: Any) -> Tensor:
    """Logits float[B,L,V] at every position, without side-channels; `changes` are arguments of the LLM."""
    embeds = model.splice(batch["ids"], batch["pixels"], {}, batch["frame_seconds"], batch.get("prompt_ids"))
    position_ids = model.position_ids(batch["ids"], batch["mask"], batch["pixels"], batch["frame_seconds"])
    arguments = {"inputs_embeds": embeds, "attention_mask": batch["mask"], "position_ids": position_ids, **changes}
    return model.base.lm_head(model.base.llm(**arguments).last_hidden_state)


def make_trained(config: Config) -> PatchedModel:
    """A model whose patches and LoRA hold random numbers."""
    model = build.create(config).eval()
    randomise([*model.patches.parameters(), *lora.state(model.base.hf).values()])
    return model
