"""PPLLaVA's towers, projector and pooling against the public classes (tests/golden/encoders/ppllava)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.encoder_weights import PPLLAVA_CONFIG, load_arrays, ppllava, write_checkpoint
from helpers.paths import GOLDEN, read_json
from torch.testing import assert_close

from pave.models.encoders import ppllava_projector
from pave.models.encoders.ppllava_clip import VisionTower, stretch_positions
from pave.models.encoders.ppllava_projector import (
    IMAGE_WINDOW,
    VIDEO_WINDOW,
    Projector,
    Sizes,
    build,
    pooled_size,
    weighted_pool,
)
from pave.types import UserError

FOLDER = GOLDEN / "encoders/ppllava"
CASES, PROMPTS = load_arrays("ppllava/pooling.npz"), load_arrays("ppllava/prompt_pooling.npz")
POOLING = read_json(FOLDER / "pooling.json")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[VisionTower, Projector]:
    return ppllava_projector.load(
        write_checkpoint(tmp_path_factory.mktemp("ppllava"), ppllava(), PPLLAVA_CONFIG), text_heads=4
    )


def pooling_window(size: Sequence[int], output: Sequence[int]) -> tuple[list[int], list[int]]:
    """Kernel and stride of windows that make a grid of tokens this small, as the public function has them."""
    stride = [n // out for n, out in zip(size, output)]
    return [n - (out - 1) * step for n, out, step in zip(size, output, stride)], stride


@pytest.mark.parametrize("case", POOLING["cases"])
def test_pooling(case: str) -> None:
    settings = POOLING["cases"][case]
    source = "warm" if case == "no_weights" else case
    x = CASES[f"{source}/x"].movedim(1, -1)
    size = settings.get("output_size")
    kernel, stride = pooling_window(x.shape[1:4], size) if size else (settings["kernel"], settings["stride"])
    pooled = weighted_pool(x, CASES.get(f"{case}/w"), kernel, stride, settings.get("temperature", 0.01))
    assert_close(pooled.movedim(-1, 1), CASES[f"{case}/y"], atol=2e-6, rtol=0)


def test_sizes() -> None:
    for row in POOLING["get_size"]:
        kernel, stride, output = (row[f"result_{name}"] for name in ("kernel", "stride", "output"))
        assert list(pooled_size(row["input"], kernel, stride)) == output
        if row["output_size"]:
            assert pooling_window(row["input"], row["output_size"]) == (kernel, stride)
    assert [np.prod(pooled_size((frames, 24, 24), VIDEO_WINDOW, VIDEO_WINDOW)) for frames in (32, 64)] == [1024, 2048]


@torch.no_grad()
@pytest.mark.parametrize("case", ["long", "short"])
def test_prompt_guided_pooling(parts: tuple[VisionTower, Projector], case: str) -> None:
    projector, tokens = parts[1], PROMPTS["patch_tokens"][None]
    expected = {name: PROMPTS[f"{case}/{name}"] for name in ("text_pooled", "text_projection", "cosine", "weights")}
    ids = PROMPTS[f"{case}/clip_ids"]
    assert_close(projector.clip_text_model(ids), expected["text_pooled"], atol=1e-5, rtol=0)
    prompt = projector.encode_prompt(ids)
    assert_close(prompt, expected["text_projection"], atol=1e-5, rtol=0)
    cosine, weights = projector.similarity(tokens, prompt), projector.relevance(tokens, prompt)
    assert_close(cosine.unflatten(2, (12, 12)), expected["cosine"], atol=2e-6, rtol=0)
    assert_close(weights.unflatten(2, (12, 12)), expected["weights"], atol=5e-6, rtol=0)
    projected, relevance = projector(tokens, ids)
    assert torch.equal(relevance, weights)
    assert_close(projected[0, :1, :, ::4], PROMPTS["projected_frame0"], atol=1e-5, rtol=0)
    visual = projector.clip_visual_projection(projector.clip_visual_ln(tokens[0, :1]))
    assert_close(visual[..., ::4], PROMPTS["visual_projection_frame0"], atol=1e-5, rtol=0)
    grid, share = projected.unflatten(2, (12, 12)), weights.unflatten(2, (12, 12))
    for kernel, name in ((VIDEO_WINDOW, "output_video"), (IMAGE_WINDOW, "output_image")):
        pooled = weighted_pool(grid, share, kernel).flatten(1, 3)
        assert_close(pooled[..., ::4], PROMPTS[f"{case}/{name}"], atol=5e-5, rtol=0)
        assert (pooled - weighted_pool(grid, None, kernel).flatten(1, 3)).abs().max() > 0.1  # the prompt has a say


def test_pooling_is_linear() -> None:
    x, added = torch.randn(2, 1, 4, 6, 6, 8)
    weights = torch.rand(1, 4, 6, 6)
    pooled = [weighted_pool(tokens, weights, VIDEO_WINDOW) for tokens in (x, added, x + added)]
    assert_close(pooled[2], pooled[0] + pooled[1], atol=1e-5, rtol=0)


@torch.no_grad()
def test_padding_of_a_prompt_changes_nothing(parts: tuple[VisionTower, Projector]) -> None:
    ids, mask = PROMPTS["short/clip_ids"], PROMPTS["short/clip_mask"]
    unpadded = ids[:, : int(mask.sum())]
    longer = torch.cat([ids, torch.zeros(1, 60, dtype=torch.long)], 1)
    for other in (unpadded, longer):
        assert_close(parts[1].encode_prompt(other), PROMPTS["short/text_projection"], atol=1e-5, rtol=0)


def test_text_tower_and_scale_never_learn(parts: tuple[VisionTower, Projector]) -> None:
    projector = parts[1]
    projector.relevance(
        PROMPTS["patch_tokens"][None], projector.encode_prompt(PROMPTS["long/clip_ids"])
    ).square().sum().backward()
    trained = {name for name, p in projector.named_parameters() if p.grad is not None}
    projector.zero_grad(set_to_none=True)
    visual = {f"clip_visual_{name}" for name in ("ln.weight", "ln.bias", "projection.weight")}
    assert trained == {*visual, "clip_text_projection.weight"}


def test_longer_position_table() -> None:
    tables = load_arrays("ppllava/text_positions.npz")
    assert_close(stretch_positions(tables["table_77"]), tables["table_248"], atol=1e-6, rtol=0)


@torch.no_grad()
def test_branch_over_time(parts: tuple[VisionTower, Projector]) -> None:
    vision, expected = parts[0], load_arrays("ppllava/bt_adapter.npz")
    assert (vision.image_size, vision.depth, vision.max_frames, vision.training) == (56, 4, 16, False)
    frame = vision.pre_layrnorm(vision.embeddings(expected["input"][0]))
    for layer in vision.encoder.layers[:2]:
        frame = layer(frame)
    assert_close(frame[:1], expected["hidden_2"], atol=1e-5, rtol=0)
    main = vision.encoder.layers[2](frame)
    first = (main[:, 1:] + vision._branch_step(0, main[None], None)[0, :, 1:]) / 2
    assert_close(torch.cat([main[:, :1], first], 1)[:1], expected["hidden_3"], atol=2e-5, rtol=0)
    assert_close(vision(expected["input"])[0], expected["hidden_minus2"][:, 1:], atol=2e-5, rtol=0)


@torch.no_grad()
def test_frames_see_one_another_in_the_branch_only(tmp_path: Path) -> None:
    pixels = load_arrays("ppllava/bt_adapter.npz")["input"]
    plain = {name: x for name, x in ppllava().items() if "btadapter" not in name}
    for state, changes in ((ppllava(), True), (plain, False)):
        vision = ppllava_projector.load(write_checkpoint(tmp_path / str(changes), state, PPLLAVA_CONFIG), text_heads=4)[
            0
        ]
        video = vision(pixels)
        assert torch.allclose(vision(pixels[:, :1])[:, 0], video[:, 0], atol=1e-4) != changes
        batch = vision(torch.cat([pixels.flip(1), pixels]))
        assert_close(batch[1:], video, atol=1e-4, rtol=0)


def test_parameters_of_the_published_size() -> None:
    with torch.device("meta"):
        vision, projector = build(Sizes())
    parameters = {n: p.numel() for n, p in vision.named_parameters()}
    branch = sum(p for n, p in parameters.items() if n.startswith("btadapter"))
    layer = sum(p for n, p in parameters.items() if n.startswith("encoder.layers.0."))
    # CLIP-L/14-336 has 303.5 M; its last layer and the norm after it are never needed.
    assert sum(parameters.values()) - branch == 303_507_456 - layer - 2 * 1024
    assert branch == 3 * (layer + 5 * 1024**2 + 7 * 1024) + 65 * 1024
    text = sum(p.numel() for p in projector.clip_text_model.parameters())
    # CLIP-L's text tower has 123.1 M with one table of 77 positions.
    assert text == 123_060_480 + (2 * 248 - 77) * 768
    assert sum(p.numel() for p in projector.parameters()) - text == 20_979_712 + 1024 * 768 + 768**2 + 2 * 1024 + 1


@pytest.mark.parametrize("part", ["patch_embedding", "encoder.layers.0.mlp.fc1", "linear_1"])
def test_models_without_these_are_refused(part: str, tmp_path: Path) -> None:
    state = {name: x for name, x in ppllava().items() if part not in name}
    with pytest.raises(UserError, match="holds no PPLLaVA towers"):
        ppllava_projector.load(write_checkpoint(tmp_path / "a", state, PPLLAVA_CONFIG))
