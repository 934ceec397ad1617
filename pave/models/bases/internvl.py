"""InternVL3 from transformers' port: each frame is a picture with a heading of its own among the words of the prompt.

InternViT sees 448 x 448 pixels; four neighbours of its 32 x 32 patches together are a token, 256 a frame. Queries are
these four side by side, as the projector reads them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoTokenizer, InternVLConfig, InternVLForConditionalGeneration

from pave.models.bases import _loading, _qwen_chat
from pave.models.bases._loading import Settings
from pave.types import VIDEO, UserError, VideoTokens
from pave.utils import hub_download

WHAT = "an InternVL checkpoint for transformers, of a name that ends in -hf"
START, END = "<img>", "</img>"
NOT_QUANTIZED = ["vision_tower", "multi_modal_projector", "lm_head"]


def _published(hidden: int, mlp: int, layers: int, heads: int, kv_heads: int) -> dict[str, Any]:
    text = {
        "model_type": "qwen2",
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": 151674,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
    }
    return {"text_config": text, "vision_config": {"attention_bias": True}, "tie_word_embeddings": False}


PUBLISHED = {
    "OpenGVLab/InternVL3-1B-hf": _published(896, 4864, 24, 14, 2),
    "OpenGVLab/InternVL3-2B-hf": _published(1536, 8960, 28, 12, 2),
    "OpenGVLab/InternVL3-8B-hf": _published(3584, 18944, 28, 28, 4),
}
"""Shapes, so that `pave show` needs no weights; the tower of 304 M is that which transformers builds unless told."""


class Pixels(NamedTuple):
    """Normalisation, that of ImageNet where no file says another."""

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)


class InternVL(nn.Module):
    """encode, layout and lm; `hf` is the LLM alone."""

    lora_targets = r"model\.language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
    vision_tower: Any
    multi_modal_projector: Any

    def __init__(self, hf: InternVLForConditionalGeneration, tokenizer: Any, pixels: Pixels) -> None:
        super().__init__()
        inside, vision = hf.model, hf.config.vision_config
        self.vision_tower, self.multi_modal_projector = inside.vision_tower, inside.multi_modal_projector
        inside.vision_tower = inside.multi_modal_projector = None
        self.hf, self.tokenizer, self.pixels = hf, tokenizer, pixels
        self.height, self.width = vision.image_size
        together = int(1 / hf.config.downsample_ratio) ** 2
        self.query_dim, self.embed_dim = vision.hidden_size * together, hf.config.get_text_config().hidden_size
        self.per_frame = (self.height // vision.patch_size[0]) * (self.width // vision.patch_size[1]) // together

    @property
    def lm(self) -> nn.Module:
        """The LLM's layers."""
        return self.hf.model.language_model

    @property
    def head(self) -> nn.Module:
        """hidden states -> vocabulary logits."""
        return self.hf.lm_head

    def preprocess(self, frames: np.ndarray) -> Tensor:
        """uint8[T,H,W,3] -> float[T,3,h,w]: PIL bicubic, aspect ignored, one picture a frame, without tiles."""
        size = (self.width, self.height)
        resized = [np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)) for frame in frames]
        x = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(x).view(3, 1, 1) for x in self.pixels)
        return (x - mean) / std

    def encode(self, pixels: Tensor) -> VideoTokens:
        """float[B,T,3,h,w] -> query float[B,T,S,Q], embeds float[B,T,S,D]"""
        frames = pixels.flatten(0, 1).to(self.multi_modal_projector.linear_1.weight.dtype)
        patches = self.vision_tower(pixel_values=frames).last_hidden_state[:, 1:]  # without the class token
        edge = int(patches.shape[1] ** 0.5)
        grid = patches.unflatten(1, (edge, edge))
        four = self.hf.model.pixel_shuffle(grid, scale_factor=self.hf.config.downsample_ratio).flatten(1, 2)
        query = four.unflatten(0, pixels.shape[:2])
        return VideoTokens(query, self.multi_modal_projector(four).unflatten(0, pixels.shape[:2]))

    def layout(self, embeds: Tensor) -> Tensor:
        """float[B,T,S,D] -> float[B,T*S,D]; no newlines, the headings are text."""
        return embeds.flatten(1, 2)

    def visual_tokens(self, frames: int, size: tuple[int, ...] = ()) -> int:
        """N of a video of so many frames, of any size; headings are not among them."""
        return frames * self.per_frame

    def video_ids(self, frames: int, size: tuple[int, ...], seconds: Tensor | None) -> list[int]:
        """What stands for a video among token ids: of each frame its heading, and VIDEO for each token."""
        start, end = self.tokenizer.convert_tokens_to_ids([START, END])
        headings = ["Frame1: ", *(f"\nFrame{i}: " for i in range(2, frames + 1))]
        told = self.tokenizer(headings, add_special_tokens=False).input_ids
        return [token for heading in told for token in (*heading, start, *[VIDEO] * self.per_frame, end)]

    def chat(
        self,
        question: str,
        history: tuple[tuple[str, str], ...] = (),
        answer: str | None = None,
        mask: Literal["answers", "official"] = "answers",
    ) -> _qwen_chat.Encoded:
        """Ids and labels of a conversation about one video; no answer leaves it open for generation."""
        return _qwen_chat.encode(self.tokenizer, _qwen_chat.turns(question, history, answer), mask, system=None)


def processor(folder: Path) -> Pixels:
    """What a folder says of pictures; files for videos, where there are any, hold what transformers assumes."""
    file = folder / "preprocessor_config.json"
    told = json.loads(file.read_text()) if file.is_file() else {}
    named = {"mean": told.get("image_mean"), "std": told.get("image_std")}
    return Pixels(**{name: tuple(value) for name, value in named.items() if value})


def load(path: str, how: Settings = Settings(), weights: bool = True) -> InternVL:
    """A base from a folder or a hub name. The embedding is never cut: no released patch expects it.

    Without `weights` it is a skeleton on the meta device; the published names then need no files at all. Raises
    UserError for settings it does not have, and naming missing, extra, misshapen tensors.
    """
    _loading.refuse(path, "internvl", how)
    if not weights and path in PUBLISHED:
        return _skeleton(InternVLConfig(**PUBLISHED[path]), Pixels())
    folder = hub_download.folder(path, WHAT, ["*.json", "*.safetensors", "*.txt"])
    raw = _loading.config(folder, WHAT)
    fixed = {"model_type": "internvl", "vision_feature_layer": -1, "vision_feature_select_strategy": "default"}
    for name, expected in fixed.items():
        if (found := raw.get(name, expected)) != expected or "model_type" not in raw:
            raise UserError(f"{folder / 'config.json'}: {name} is {found}, expected {expected}; give {WHAT}")
    if not weights:
        return _skeleton(InternVLConfig.from_pretrained(folder), processor(folder))
    hf = _loading.pretrained(InternVLForConditionalGeneration, folder, WHAT, **how.given(NOT_QUANTIZED))
    return InternVL(hf, _tokenizer(folder), processor(folder)).eval()


def _tokenizer(folder: Path) -> Any:
    """UserError: one without the marks of a picture."""
    made = AutoTokenizer.from_pretrained(folder)
    if missing := {START, END} - made.get_vocab().keys():
        raise UserError(f"{folder}: its tokenizer has no {' '.join(sorted(missing))}; copy all tokenizer files")
    return made


def _skeleton(config: InternVLConfig, pixels: Pixels) -> InternVL:
    """Shapes without weights."""
    with torch.device("meta"):
        return InternVL(InternVLForConditionalGeneration(config), None, pixels)
