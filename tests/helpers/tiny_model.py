"""A tiny run that tests share: a base with random weights, a handful of clips, made-up audio features."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from pave.config import BaseConfig, Config, DataConfig, LoraConfig, PatchConfig
from pave.media import feature_files
from pave.models.bases import _llava_onevision_layouts
from pave.sideworld import files
from pave.tasks import sideworld
from pave.training.tiny_models.llava_onevision import make_tokenizer
from pave.types import SideTokens

SIDE_DIM = 12


class TinySetup(NamedTuple):
    """Where the tiny base and the tiny data are."""

    base: Path
    data: Path


def make_base(folder: Path) -> Path:
    """A random 1-layer LLaVA-OneVision for 32-pixel frames, in the lmms-lab layout."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer(sideworld.vocabulary_texts())
    text = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": len(tokenizer) + 8,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
    }
    vision = {
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
    }
    _llava_onevision_layouts.save(
        _llava_onevision_layouts.build_model(text, vision), tokenizer, text, vision, folder, torch.float32
    )
    return folder


def make_data(root: Path, train: int = 4, test: int = 3) -> Path:
    """Clips, and for each a feature file of its own length."""
    files.make_clips(root, train, test, seed=7, workers=1)
    for i, video in enumerate(sorted((root / "videos").glob("*.mp4"))):
        generator = torch.Generator().manual_seed(i)
        tokens = SideTokens(torch.randn(5 + i % 3, 1, SIDE_DIM, generator=generator))
        meta = feature_files.Meta("audio", "imagebind_audio", video.name)
        feature_files.write(root / "features/audio" / f"{video.stem}.safetensors", tokens, meta)
    return root


def make_config(base: Path, root: Path, **train: object) -> Config:
    """Two questions a step, float32, quick."""
    return Config(
        base=BaseConfig(path=str(base), frames=4, dtype="float32"),
        sides={"audio": PatchConfig(side_dim=SIDE_DIM, hidden_dim=16, side_hidden_dim=16, features="features/audio")},
        lora=LoraConfig(r=2, alpha=4, dropout=0.1),
        data=DataConfig(task="sideworld", root=str(root)),
        patch_lr=5e-3,
        train={
            "learning_rate": 1e-3,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "dataloader_num_workers": 0,
            "logging_steps": 1,
            "save_steps": 2,
            "max_steps": 4,
            "report_to": "none",
            "disable_tqdm": True,
            **train,
        },
    )
