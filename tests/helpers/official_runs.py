"""Stored runs of whole official models: their inputs, and the outputs that ours must give."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.testing import assert_close

from helpers.paths import GOLDEN, read_json
from pave.checkpoints import official
from pave.config import BaseConfig, Config
from pave.data.collate import expand_video_tokens, pad_rows
from pave.models.patched_model import PatchedModel
from pave.types import IGNORE_INDEX, VIDEO_TOKEN_ID

E2E = GOLDEN / "e2e"
BASE = str(E2E / "tiny-llava-onevision-qwen2-ov")
SUMMARY = read_json(E2E / "summary.json")
FRAMES = np.load(E2E / "frames.npz")
CONFIG = BaseConfig(path=BASE, dtype="float32", vision_heads=4, frames=4)


def arrays(name: str) -> dict[str, Tensor]:
    return {k: torch.from_numpy(v) for k, v in np.load(E2E / f"{name}.npz").items()}


def fresh(folder: str = "tiny_pave_v5_1_3_lora", **base: Any) -> PatchedModel:
    return official.load(E2E / folder, Config(base=dataclasses.replace(CONFIG, **base)))[0]


@cache
def patched() -> PatchedModel:
    """The shared, unmerged model with one side-channel; no test changes it."""
    return fresh()


def audio(*names: str) -> dict[str, Any]:
    """Feature files as a batch of one channel."""
    files = [torch.load(E2E / f"data/{name}.pt", weights_only=True).float() for name in names]
    tokens = [f.flatten(0, -2)[:, None] if "audio" in n else f[:, 1:] for f, n in zip(files, names)]
    x = torch.zeros(len(tokens), max(map(len, tokens)), *tokens[0].shape[1:])
    for row, t in zip(x, tokens):
        row[: len(t)] = t
    return {"audio": {"x": x, "steps": [len(t) for t in tokens], "seconds": None}}


def inputs(model: PatchedModel, name: str, videos: str = "a", left: bool = False) -> dict[str, Any]:
    """The stored token ids with room for the visual tokens, and the pixels."""
    data = arrays(name)
    count, rows = model.base.num_visual_tokens(4), []
    for ids, labels, mask in zip(data["input_ids"], data["labels"], data["attention_mask"]):
        is_valid = mask.bool()
        rows.append(expand_video_tokens(ids[is_valid].tolist(), labels[is_valid].tolist(), count, 32768))
    return {
        "ids": pad_rows([r[0] for r in rows], 0, left),
        "labels": pad_rows([r[1] for r in rows], IGNORE_INDEX, left),
        "mask": pad_rows([[1] * len(r[0]) for r in rows], 0, left).bool(),
        "pixels": torch.stack([model.base.preprocess(FRAMES[f"video_{v}"]) for v in videos]),
    }


def check_run(model: PatchedModel, name: str, sides: dict[str, Any], videos: str = "a") -> None:
    """Embeddings, logits at the stored positions, labels, mask and loss of one stored run."""
    data, summary = arrays(name), SUMMARY[name]
    batch = inputs(model, name, videos)
    assert torch.equal(batch["mask"], data["out_attention_mask"].bool())
    assert torch.equal(batch["labels"], data["out_labels"])
    with torch.no_grad():
        embeds = model.splice(batch["ids"], batch["pixels"], sides)
        hidden = model.base.llm(inputs_embeds=embeds, attention_mask=batch["mask"]).last_hidden_state
        loss = model(**batch, sides=sides)["loss"]
    rows = data["embeds_rows"]
    is_valid = batch["mask"][:, rows]
    assert_close(embeds[:, rows][is_valid], data["embeds"][is_valid], atol=1e-4, rtol=0)
    for b in range(len(embeds)):
        is_text = (batch["ids"][b] != VIDEO_TOKEN_ID) & batch["mask"][b]
        expected = data[f"logits_{b}"]
        # The positions that predict a label, or the last four.
        rows = data[f"rows_{b}"].long() if f"rows_{b}" in data else slice(-len(expected), None)
        assert_close(model.base.lm_head(hidden[b][is_text][rows]), expected, atol=5e-4, rtol=0)
    assert_close(loss.item(), summary["loss"], atol=5e-5, rtol=0)


def generate(
    model: PatchedModel, question_ids: list[int], sides: dict[str, Any], video: str = "a", **options: Any
) -> list[int]:
    ids, _ = expand_video_tokens(question_ids, question_ids, model.base.num_visual_tokens(4), 32768)
    pixels = model.base.preprocess(FRAMES[f"video_{video}"])[None]
    tokens = torch.tensor([ids])
    return model.generate(tokens, torch.ones_like(tokens), pixels, sides, **options)[0].tolist()
