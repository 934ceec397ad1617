"""The official folder with two patches, and a batch with both side-channels."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

from helpers.official_runs import E2E, audio
from pave.config import PatchConfig

SIDES = {"dense": PatchConfig(), "audio": PatchConfig()}
BOTH = {"dense": audio("languagebind/vid_a")["audio"], **audio("audio/vid_a")}


def put_together(out: Path) -> Path:
    """The official folder: its first patch is bit-equal to that of the single-channel one and stored only there."""
    stored = E2E / "tiny_pave_v5_1_3_lora_multi"
    for file in stored.glob("adapter*"):
        shutil.copy(file, out)
    shutil.copy(stored / "config.json", out)
    first = torch.load(E2E / "tiny_pave_v5_1_3_lora/non_lora_trainables.bin", weights_only=True)
    second = load_file(stored / "temporal_aggregator2.safetensors")
    names = [name.replace("temporal_aggregator.", "temporal_aggregator2.") for name in first]
    torch.save({**first, **{name: second[name] for name in names}}, out / "non_lora_trainables.bin")
    return out
