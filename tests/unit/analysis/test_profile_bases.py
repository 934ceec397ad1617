"""`pave profile` for every base: torch's counts on tiny models, hand formulas and published counts at true sizes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny_bases import make_original, make_port, make_ppllava, make_qwen
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pave.analysis import op_counter, profile
from pave.analysis.op_counter import Shape
from pave.checkpoints import build
from pave.config import BaseConfig, Config, LoraConfig, PatchConfig
from pave.models.patched_model import PatchedModel

MAKE = {
    "video_llava": make_port,
    "video_llava original": make_original,
    "qwen2_5_vl": make_qwen,
    "ppllava": make_ppllava,
}


def make_config(name: str, path: str, frames: int = 8) -> Config:
    return Config(
        base=BaseConfig(name=name.split()[0], path=path, frames=frames, newline="no_token", dtype="float32"),
        sides={"audio": PatchConfig(side_dim=12, hidden_dim=16, side_hidden_dim=16)},
        lora=LoraConfig(r=2, alpha=4, dropout=0.0),
    )


@pytest.mark.parametrize("name", MAKE)
def test_a_tower_on_shapes_costs_what_it_costs(name: str, tmp_path: Path) -> None:
    config = make_config(name, str(MAKE[name](tmp_path)))
    base, skeleton = build.load_base(config.base).eval(), build.create(config, weights=False).eval()
    pixels = base.preprocess(np.zeros((8, *op_counter.PICTURE_SIZE, 3), np.uint8))[None]
    prompt_ids = torch.ones(1, 1, dtype=torch.long) if base.prompt_conditioned else None
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), FlopCounterMode(display=False) as counter:
        expected = base.encode(pixels, prompt_ids)
    # PPLLaVA's config.json does not tell the size of its text tower, so its skeleton has CLIP's.
    vision = op_counter.count_vision(PatchedModel(base.to("meta"), {}), 8)
    assert vision.counts.flops == counter.get_total_flops()
    assert [x.shape for x in vision.tokens] == [x.shape for x in expected]
    assert all(x.is_meta for x in vision.tokens)
    assert 0 <= vision.projector_flops < vision.counts.flops
    result = profile.profile(config, {"audio": Shape(7, 1)}, text=10)
    assert result.visual_tokens == base.arrange_tokens(expected.embeds).shape[1]
    assert sum(row.parameters for row in result.rows.values()) == sum(p.numel() for p in skeleton.parameters())
    assert all(row.gflop > 0 for row in result.rows.values())


def profile_of(name: str, path: str, frames: int) -> profile.Profile:
    """At true size."""
    return profile.profile(make_config(name, path, frames), {"audio": Shape(7, 1)})


def llm_gflop(length: int, width: int, inner: int, layers: int, pairs: int, vocabulary: int) -> float:
    """Of one prompt by hand; `pairs` is the width of keys and values."""
    linear = layers * (2 * width**2 + 2 * width * pairs + 3 * width * inner)
    return 2 * (length * (linear + layers * 2 * length * width) + width * vocabulary) / 1e9


def test_qwen_by_hand() -> None:
    result = profile_of("qwen2_5_vl", "Qwen/Qwen2.5-VL-3B-Instruct", frames=2)
    high, wide = 34, 46  # patches of 640 x 480, made whole tokens
    patches, width, inner = high * wide, 1280, 3420
    linear = 4 * width**2 + 3 * width * inner
    # Windows of 8 x 8 patches in all layers but four, cut off at the edges.
    windows = sum(a * a * b * b for a in (8, 8, 8, 8, 2) for b in (8, 8, 8, 8, 8, 6))
    pairs = 28 * windows + 4 * patches**2
    embedding, merger = 2 * 3 * 14 * 14 * width, patches // 4 * (5120**2 + 5120 * 2048)
    tower = patches * (32 * linear + embedding) + 2 * pairs * width + merger
    assert result.rows["vision tower"].gflop == pytest.approx(2 * tower / 1e9, rel=1e-9)
    assert result.rows["vision tower"].parameters == 668_684_288
    assert result.visual_tokens == patches // 4
    expected = llm_gflop(patches // 4 + profile.TEXT_TOKENS, 2048, 11008, 36, 256, 151936)
    assert result.rows["LLM"].gflop == pytest.approx(expected, rel=1e-9)
    assert "projector" not in result.rows


@pytest.mark.parametrize(
    ("name", "path", "tower", "a_frame"),
    [
        ("video_panda", "jh-yi/Video-Panda-7B", 24_086_866, 205),
        ("video_llava", "LanguageBind/Video-LLaVA-7B", 387_380_224, 257),
    ],
)
def test_vicuna_bases_by_hand(name: str, path: str, tower: int, a_frame: int) -> None:
    result = profile_of(name, path, frames=8)
    assert (result.rows["vision tower"].parameters, result.rows["projector"].parameters) == (tower, 20_979_712)
    assert result.visual_tokens == 8 * a_frame
    assert result.rows["projector"].gflop == pytest.approx(2 * 8 * a_frame * (1024 * 4096 + 4096**2) / 1e9, rel=1e-9)
    expected = llm_gflop(8 * a_frame + profile.TEXT_TOKENS, 4096, 11008, 32, 4096, 32000)
    assert result.rows["LLM"].gflop == pytest.approx(expected, rel=1e-9)


def test_the_paper_is_named_for_its_base_alone(tmp_path: Path) -> None:
    config = make_config("video_llava", str(make_port(tmp_path)))
    result = profile.profile(config, {"audio": Shape(7, 1)})
    assert "98.5" not in "".join(profile.notes(result))
    as_llava: Any = dataclasses.replace(result, base="llava_onevision")
    assert "98.5" in "".join(profile.notes(as_llava))
