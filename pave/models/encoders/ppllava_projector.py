"""PPLLaVA's projector in plain torch: fewer visual tokens, those kept that matter for the prompt."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pave.models.encoders import _state_dict
from pave.models.encoders.ppllava_clip import EPS, Text, Vision
from pave.types import UserError

VISION, PROJECTOR = "vision_tower.vision_model.", "multi_modal_projector."
"""Before the names of the picture tower and of the projector, which holds the text tower, in the published files."""
BRANCH = "btadapter_T_layers."
FIRST = "encoder.layers.0"
HEAD = 64
"""Width of an attention head of CLIP."""
Size = tuple[int, int, int]
"""Along frames, rows and columns."""
VIDEO: Size = (2, 3, 3)
IMAGE: Size = (1, 3, 3)
"""Windows of the published models, for frames that follow one another and for pictures that do not."""
TEMPERATURE = 0.01


def window(size: Size, output: Size) -> tuple[Size, Size]:
    """Kernel and stride of windows that make a grid of tokens this small."""
    stride = tuple(n // out for n, out in zip(size, output))
    kernel = tuple(n - (out - 1) * step for n, out, step in zip(size, output, stride))
    return kernel, stride  # type: ignore[return-value]


def pooled_size(size: Size, kernel: Size, stride: Size) -> Size:
    """What windows leave of a grid of tokens; those that do not fit are dropped."""
    return tuple((n - k) // s + 1 for n, k, s in zip(size, kernel, stride))  # type: ignore[return-value]


def pool(
    x: Tensor, weights: Tensor | None, kernel: Size, stride: Size | None = None, temperature: float = TEMPERATURE
) -> Tensor:
    """float[N,T,h,w,D], weights float[N,T,h,w] -> float[N,T',h',w',D]: means of windows, weighted by softmax.

    A lower temperature keeps the heaviest token only; without weights these are plain means.
    """
    stride = stride or kernel

    def windows(grid: Tensor) -> Tensor:
        for axis in range(3):
            grid = grid.unfold(axis + 1, kernel[axis], stride[axis])
        return grid.flatten(-3)

    if weights is None:
        return windows(x).mean(-1)
    share = (windows(weights) / temperature).softmax(-1).to(x.dtype)
    return torch.einsum("nthwdk,nthwk->nthwd", windows(x), share)


class Projector(nn.Module):
    """Tower tokens float[B,T,P,W] to the LLM's width, and the prompt's say in how they are pooled."""

    def __init__(self, width: int, out: int, shared: int, text: Text) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(width, out), nn.Linear(out, out)
        self.clip_text_model = text
        self.clip_visual_ln = nn.LayerNorm(width, EPS)
        self.clip_visual_projection = nn.Linear(width, shared, bias=False)
        self.clip_text_projection = nn.Linear(text.final_layer_norm.normalized_shape[0], shared, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(100)), requires_grad=False)

    def forward(self, tokens: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """With prompts int[B,L] in CLIP's tokens -> float[B,T,P,D], and how much each token matters float[B,T,P]."""
        return self.project(tokens), self.weights(tokens, self.prompt(ids))

    def project(self, tokens: Tensor) -> Tensor:
        """float[...,W] -> float[...,D]"""
        return self.linear_2(F.gelu(self.linear_1(tokens)))

    def prompt(self, ids: Tensor) -> Tensor:
        """CLIP's token ids int[B,L] -> what to look for float[B,E]; the text tower never learns."""
        with torch.no_grad():
            found = self.clip_text_model(ids)
        return self.clip_text_projection(found)

    def cosine(self, tokens: Tensor, prompt: Tensor) -> Tensor:
        """How near each token is to the prompt float[B,E], in [-1,1]: float[B,T,P], in float32."""
        seen = self.clip_visual_projection(self.clip_visual_ln(tokens)).float()
        return torch.einsum("btpe,be->btp", F.normalize(seen, dim=-1), F.normalize(prompt.float(), dim=-1))

    def weights(self, tokens: Tensor, prompt: Tensor) -> Tensor:
        """Share of each token of a video in what the prompt is about: float[B,T,P], sum 1 over T and P."""
        near = self.cosine(tokens, prompt) * self.logit_scale.float().exp()
        return near.flatten(1).softmax(-1).view_as(near)


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
    moments: int = 64
    """Frames that it can tell apart."""
    vocabulary: int = 49408
    text_width: int = 768
    text_inner: int = 3072
    text_layers: int = 12
    text_heads: int = 12
    shared: int = 768
    out: int = 4096


def build(sizes: Sizes) -> tuple[Vision, Projector]:
    """Random weights."""
    s = sizes
    text = Text(s.vocabulary, s.text_width, s.text_inner, s.text_layers, s.text_heads)
    vision = Vision(s.width, s.inner, s.layers, s.heads, s.patch, s.edge, s.depth, s.moments)
    return vision, Projector(s.width, s.out, s.shared, text)


def load(path: Path, text_heads: int | None = None) -> tuple[Vision, Projector]:
    """Both in eval mode and float32 from PPLLaVA's checkpoint, a folder or one of its files.

    Sizes come from the weights, heads from config.json where it has them, else from CLIP's 64 channels a head.
    UserError: unreadable, another model, tensors missing, left over or of the wrong shape.
    """
    states = tuple(_state_dict.select(path, partial(_own_name, prefix)) for prefix in (VISION, PROJECTOR))
    sizes = _sizes(path, states[0], states[1], _state_dict.config(path).get("vision_config", {}))
    sizes = sizes._replace(text_heads=text_heads or sizes.text_heads)
    with torch.device("meta"):
        parts = build(sizes)
    for what, module, state in zip(("picture tower", "projector"), parts, states):
        state = {name: x for name, x in state.items() if not name.startswith(_unused(sizes))}
        _state_dict.check(path, f"a PPLLaVA {what}", state, module.state_dict())
        module.load_state_dict(state, assign=True)
        module.eval()
    parts[1].clip_text_model.embeddings.position_embedding.requires_grad_(False)
    return parts


def _sizes(path: Path, vision: Mapping[str, Tensor], projector: Mapping[str, Tensor], told: Mapping[str, Any]) -> Sizes:
    """UserError: tensors that tell them are not there."""
    try:
        width, _, patch, _ = vision["embeddings.patch_embedding.weight"].shape
        vocabulary, text_width = projector["clip_text_model.embeddings.token_embedding.weight"].shape
        places, inner = len(vision["embeddings.position_embedding.weight"]), len(vision[f"{FIRST}.mlp.fc1.weight"])
        text = ("clip_text_projection", "linear_1", f"clip_text_model.{FIRST}.mlp.fc1")
        shared, out, text_inner = (len(projector[f"{name}.weight"]) for name in text)
    except (KeyError, ValueError) as error:
        raise UserError(f"{path}: holds no PPLLaVA towers: {error} is not as published; give its checkpoint") from error
    depth = len({name.split(".")[1] for name in vision if name.startswith(BRANCH)})
    return Sizes(
        width=width,
        inner=inner,
        layers=told.get("num_hidden_layers", _state_dict.layers(vision)),
        heads=told.get("num_attention_heads", max(1, width // HEAD)),
        patch=patch,
        edge=math.isqrt(places - 1),
        depth=depth,
        moments=len(vision["btadapter_time_embed.weight"]) if depth else 0,
        vocabulary=vocabulary,
        text_width=text_width,
        text_inner=text_inner,
        text_layers=_state_dict.layers(name.removeprefix("clip_text_model.") for name in projector),
        text_heads=max(1, text_width // HEAD),
        shared=shared,
        out=out,
    )


def _unused(sizes: Sizes) -> tuple[str, ...]:
    """Beginnings of the names that no feature needs."""
    last = (f"btadapter_S_layers.{sizes.depth - 1}.", f"{BRANCH}{sizes.depth - 1}.") if sizes.depth else ()
    return ("post_layernorm.", f"encoder.layers.{sizes.layers - 1}.", *last)


def _own_name(prefix: str, name: str) -> str | None:
    own = name.removeprefix(prefix)
    return own if name.startswith(prefix) and not own.endswith("position_ids") else None
