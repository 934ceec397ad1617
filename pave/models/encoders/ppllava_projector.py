"""PPLLaVA's projector in plain torch: fewer visual tokens, pooled by their relevance to the prompt."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pave.models.encoders import _state_dict
from pave.models.encoders.ppllava_clip import EPS, TextTower, VisionTower
from pave.types import UserError

VISION_PREFIX, PROJECTOR_PREFIX = "vision_tower.vision_model.", "multi_modal_projector."
"""Of the names of the image tower and of the projector, which holds the text tower, in the published files."""
UNUSED = r"position_ids$"
BRANCH_PREFIX = "btadapter_T_layers."
FIRST_LAYER = "encoder.layers.0"
HEAD_DIM = 64
"""Width of an attention head of CLIP."""
Size = tuple[int, int, int]
"""Along frames, rows and columns."""
VIDEO_WINDOW: Size = (2, 3, 3)
IMAGE_WINDOW: Size = (1, 3, 3)
"""Windows of the published models, for frames that follow one another and for images that do not."""
TEMPERATURE = 0.01


def pooled_size(size: Size, kernel: Size, stride: Size) -> Size:
    """Size of a grid of tokens after pooling; tokens beyond the last complete window are dropped."""
    frames, rows, columns = ((n - k) // s + 1 for n, k, s in zip(size, kernel, stride))
    return frames, rows, columns


def weighted_pool(
    x: Tensor, weights: Tensor | None, kernel: Size, stride: Size | None = None, temperature: float = TEMPERATURE
) -> Tensor:
    """Pool float[N,T,h,w,D] by weights float[N,T,h,w] -> float[N,T',h',w',D], weights by softmax in each window.

    A lower temperature keeps the heaviest token only; without weights these are plain means.
    """
    windows = _windows(x, kernel, stride or kernel)
    if weights is None:
        return windows.mean(-1)

    shares = (_windows(weights, kernel, stride or kernel) / temperature).softmax(-1).to(x.dtype)
    return torch.einsum("nthwdk,nthwk->nthwd", windows, shares)


def _windows(grid: Tensor, kernel: Size, stride: Size) -> Tensor:
    """[N,T,h,w,...] -> [N,T',h',w',...,K], the K tokens of each window."""
    for axis in range(3):
        grid = grid.unfold(axis + 1, kernel[axis], stride[axis])
    return grid.flatten(-3)


class Projector(nn.Module):
    """Tower tokens float[B,T,P,W] to the LLM's width, and their relevance to the prompt."""

    def __init__(self, width: int, out: int, shared: int, text: TextTower) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(width, out), nn.Linear(out, out)
        self.clip_text_model = text
        self.clip_visual_ln = nn.LayerNorm(width, EPS)
        self.clip_visual_projection = nn.Linear(width, shared, bias=False)
        self.clip_text_projection = nn.Linear(text.final_layer_norm.normalized_shape[0], shared, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(100)), requires_grad=False)

    def forward(self, tokens: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and prompts int[B,L] in CLIP's tokens -> float[B,T,P,D] and relevance float[B,T,P]."""
        return self.project(tokens), self.relevance(tokens, self.encode_prompt(ids))

    def project(self, tokens: Tensor) -> Tensor:
        """float[...,W] -> float[...,D]"""
        return self.linear_2(F.gelu(self.linear_1(tokens)))

    def encode_prompt(self, ids: Tensor) -> Tensor:
        """Encode CLIP's token ids int[B,L] into the space shared with images, float[B,E]; the text tower is frozen."""
        with torch.no_grad():
            text = self.clip_text_model(ids)
        return self.clip_text_projection(text)

    def similarity(self, tokens: Tensor, prompt: Tensor) -> Tensor:
        """Cosine of each token with the prompt float[B,E], in float32: float[B,T,P]."""
        visual = self.clip_visual_projection(self.clip_visual_ln(tokens)).float()
        return torch.einsum("btpe,be->btp", F.normalize(visual, dim=-1), F.normalize(prompt.float(), dim=-1))

    def relevance(self, tokens: Tensor, prompt: Tensor) -> Tensor:
        """Share of each token of a video in the similarity to the prompt: float[B,T,P], sum 1 over T and P."""
        logits = self.similarity(tokens, prompt) * self.logit_scale.float().exp()
        return logits.flatten(1).softmax(-1).view_as(logits)


class Sizes(NamedTuple):
    """Of both towers and the projector; the defaults are those of the published 7B models."""

    width: int = 1024
    inner: int = 4096
    layers: int = 24
    heads: int = 16
    patch: int = 14
    edge: int = 24
    depth: int = 4
    """Steps of the branch over time, 0 for none."""
    max_frames: int = 64
    """Frames that it can tell apart."""
    vocabulary: int = 49408
    text_width: int = 768
    text_inner: int = 3072
    text_layers: int = 12
    text_heads: int = 12
    shared: int = 768
    out: int = 4096


def build(sizes: Sizes) -> tuple[VisionTower, Projector]:
    """Make both with random weights."""
    s = sizes
    text = TextTower(s.vocabulary, s.text_width, s.text_inner, s.text_layers, s.text_heads)
    vision = VisionTower(s.width, s.inner, s.layers, s.heads, s.patch, s.edge, s.depth, s.max_frames)
    return vision, Projector(s.width, s.out, s.shared, text)


def load(path: Path, text_heads: int | None = None) -> tuple[VisionTower, Projector]:
    """Load both in eval mode and float32 from PPLLaVA's checkpoint, a folder or one of its files.

    Sizes come from the weights, heads from config.json where it has them, else from CLIP's 64 channels a head.
    Raises UserError: unreadable, another model, tensors missing, unexpected or misshapen.
    """
    vision_state = _state_dict.select(path, _state_dict.after_prefix([VISION_PREFIX], UNUSED))
    projector_state = _state_dict.select(path, _state_dict.after_prefix([PROJECTOR_PREFIX], UNUSED))
    settings = _state_dict.config(path).get("vision_config", {})
    sizes = _sizes(path, vision_state, projector_state, settings)
    if text_heads:
        sizes = sizes._replace(text_heads=text_heads)

    with torch.device("meta"):
        vision, projector = build(sizes)
    unused = _unused_prefixes(sizes)
    vision_state = {name: x for name, x in vision_state.items() if not name.startswith(unused)}
    _state_dict.fill(vision, path, "a PPLLaVA image tower", vision_state)
    _state_dict.fill(projector, path, "a PPLLaVA projector", projector_state)
    projector.clip_text_model.embeddings.position_embedding.requires_grad_(False)
    return vision, projector


def _sizes(
    path: Path, vision: Mapping[str, Tensor], projector: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> Sizes:
    """Sizes by the weights. Raises UserError where tensors that tell them are missing."""
    try:
        width, _, patch, _ = vision["embeddings.patch_embedding.weight"].shape
        vocabulary, text_width = projector["clip_text_model.embeddings.token_embedding.weight"].shape
        positions = len(vision["embeddings.position_embedding.weight"])
        inner = len(vision[f"{FIRST_LAYER}.mlp.fc1.weight"])
        text_inner = len(projector[f"clip_text_model.{FIRST_LAYER}.mlp.fc1.weight"])
        shared, out = len(projector["clip_text_projection.weight"]), len(projector["linear_1.weight"])
    except (KeyError, ValueError) as error:
        raise UserError(f"{path}: holds no PPLLaVA towers: {error} is not as published; give its checkpoint") from error

    depth = len({name.split(".")[1] for name in vision if name.startswith(BRANCH_PREFIX)})
    return Sizes(
        width=width,
        inner=inner,
        layers=settings.get("num_hidden_layers", _state_dict.count_layers(vision)),
        heads=settings.get("num_attention_heads", max(1, width // HEAD_DIM)),
        patch=patch,
        edge=math.isqrt(positions - 1),
        depth=depth,
        max_frames=len(vision["btadapter_time_embed.weight"]) if depth else 0,
        vocabulary=vocabulary,
        text_width=text_width,
        text_inner=text_inner,
        text_layers=_state_dict.count_layers(name.removeprefix("clip_text_model.") for name in projector),
        text_heads=max(1, text_width // HEAD_DIM),
        shared=shared,
        out=out,
    )


def _unused_prefixes(sizes: Sizes) -> tuple[str, ...]:
    """Of the tensors of the image tower that no feature needs."""
    prefixes = ["post_layernorm.", f"encoder.layers.{sizes.layers - 1}."]
    if sizes.depth:
        prefixes += [f"btadapter_S_layers.{sizes.depth - 1}.", f"{BRANCH_PREFIX}{sizes.depth - 1}."]
    return tuple(prefixes)
