"""InternVL3 from transformers' port: each frame is an image with a heading of its own among the words of the prompt.

InternViT sees 448 x 448 pixels; four neighbours of its 32 x 32 patches together are a token, 256 a frame. Queries are
these four side by side, as the projector reads them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLVisionModel, PreTrainedTokenizerBase
from transformers.models.internvl.modeling_internvl import InternVLMultiModalProjector

from pave.models import base
from pave.models.base import EncodedChat, History, Labels, LoadSettings
from pave.models.bases import _loading, _pixels, _qwen_chat
from pave.types import VIDEO_TOKEN_ID, UserError, VideoTokens
from pave.utils import hub_download
from pave.utils.json_files import read_json

if TYPE_CHECKING:
    from typing_extensions import Self

EXPECTED = "an InternVL checkpoint for transformers, of a name that ends in -hf"
START, END = "<img>", "</img>"
UNQUANTIZED = ("vision_tower", "multi_modal_projector", "lm_head")
REQUIRED_CONFIG = {"model_type": "internvl", "vision_feature_layer": -1, "vision_feature_select_strategy": "default"}


def _config(hidden: int, mlp: int, layers: int, heads: int, kv_heads: int) -> dict[str, object]:
    shapes = _loading.llm_shapes(hidden, mlp, layers, heads, kv_heads, 151674, False)
    text = {**shapes, "model_type": "qwen2", "max_position_embeddings": 32768}
    return {"text_config": text, "vision_config": {"attention_bias": True}, "tie_word_embeddings": False}


PUBLISHED = {
    "OpenGVLab/InternVL3-1B-hf": _config(896, 4864, 24, 14, 2),
    "OpenGVLab/InternVL3-2B-hf": _config(1536, 8960, 28, 12, 2),
    "OpenGVLab/InternVL3-8B-hf": _config(3584, 18944, 28, 28, 4),
}
"""Settings, so that `pave show` needs no files; the tower of 304 M is that which transformers builds by default."""


class Normalization(NamedTuple):
    """Of pixels; by default that of ImageNet."""

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)


class Base(base.Base):
    """InternVL3; `hf` is the LLM alone."""

    lora_targets = rf"model\.language_model\.{base.LLM_PROJECTIONS}"

    def __init__(
        self,
        hf: InternVLForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase | None,
        normalization: Normalization,
    ) -> None:
        vision = hf.config.vision_config
        patches_in_token = int(1 / hf.config.downsample_ratio) ** 2
        super().__init__(tokenizer, vision.hidden_size * patches_in_token, hf.config.get_text_config().hidden_size)
        self.vision_tower: InternVLVisionModel = hf.model.vision_tower
        self.multi_modal_projector: InternVLMultiModalProjector = hf.model.multi_modal_projector
        hf.model.vision_tower = hf.model.multi_modal_projector = None
        self.hf = hf

        self.normalization = normalization
        self.height, self.width = vision.image_size
        patches = (self.height // vision.patch_size[0]) * (self.width // vision.patch_size[1])
        self.tokens_per_frame: int = patches // patches_in_token

    def preprocess(self, frames: np.ndarray) -> Tensor:
        """Make float[T,3,h,w] of uint8[T,H,W,3]: PIL bicubic, aspect ignored, one image a frame, without tiles."""
        resized = [_pixels.resize(frame, self.height, self.width) for frame in frames]
        return _pixels.normalize(resized, *self.normalization)

    def encode(self, pixels: Tensor, prompt_ids: Tensor | None = None) -> VideoTokens:
        """Encode float[B,T,3,h,w] into query float[B,T,S,Q], four patches side by side, and embeds float[B,T,S,D]."""
        frames = pixels.flatten(0, 1).to(self.multi_modal_projector.linear_1.weight.dtype)
        patches = self.vision_tower(pixel_values=frames).last_hidden_state[:, 1:]  # without the class token
        edge = int(patches.shape[1] ** 0.5)
        grid = patches.unflatten(1, (edge, edge))
        tokens = self.hf.model.pixel_shuffle(grid, scale_factor=self.hf.config.downsample_ratio).flatten(1, 2)
        embeds = self.multi_modal_projector(tokens)
        return VideoTokens(tokens.unflatten(0, pixels.shape[:2]), embeds.unflatten(0, pixels.shape[:2]))

    def num_visual_tokens(self, frames: int, size: tuple[int, ...] = ()) -> int:
        """N for so many frames, of any size; headings are not among them."""
        return frames * self.tokens_per_frame

    def visual_token_ids(self, frames: int, size: tuple[int, ...], seconds: Tensor | None) -> list[int]:
        """Token ids of a video: of each frame its heading, and VIDEO_TOKEN_ID for each token."""
        start, end = self.tokenizer.convert_tokens_to_ids([START, END])
        headings = ["Frame1: ", *(f"\nFrame{i}: " for i in range(2, frames + 1))]
        ids: list[int] = []
        for heading in self.tokenizer(headings, add_special_tokens=False).input_ids:
            ids += [*heading, start, *[VIDEO_TOKEN_ID] * self.tokens_per_frame, end]
        return ids

    def chat(
        self, question: str, history: History = (), answer: str | None = None, labels: Labels = "answers"
    ) -> EncodedChat:
        """Encode a conversation by Qwen2's template, without a system text."""
        conversation = _qwen_chat.turns(question, history, answer)
        return _qwen_chat.encode(self.tokenizer, conversation, labels, system=None)

    @classmethod
    def load(cls, path: str, settings: LoadSettings = LoadSettings(), weights: bool = True) -> Self:
        """Load a base from a folder or a hub name; the published names need no files without `weights`."""
        _loading.refuse_settings(cls, path, settings)
        if not weights and path in PUBLISHED:
            return cls._skeleton(InternVLConfig(**PUBLISHED[path]), Normalization())

        folder = hub_download.find_folder(path, EXPECTED, ["*.json", "*.safetensors", "*.txt"])
        config_json = {"model_type": None, **read_json(folder / "config.json", EXPECTED)}
        for name, expected in REQUIRED_CONFIG.items():
            actual = config_json.get(name, expected)
            if actual != expected:
                raise UserError(f"{folder / 'config.json'}: {name} is {actual}, expected {expected}; give {EXPECTED}")
        if not weights:
            return cls._skeleton(InternVLConfig.from_pretrained(folder), read_normalization(folder))

        arguments = _loading.pretrained_arguments(settings, UNQUANTIZED)
        hf = _loading.load_pretrained(InternVLForConditionalGeneration, folder, EXPECTED, **arguments)
        tokenizer = _loading.load_tokenizer(folder, (START, END))
        return cls(hf, tokenizer, read_normalization(folder)).eval()

    @classmethod
    def _skeleton(cls, config: InternVLConfig, normalization: Normalization) -> Self:
        with torch.device("meta"):
            return cls(InternVLForConditionalGeneration(config), None, normalization)


def read_normalization(folder: Path) -> Normalization:
    """Read what a folder says of images; files for videos, where there are any, hold what transformers assumes."""
    file = folder / "preprocessor_config.json"
    processor = read_json(file, "the settings of an image processor") if file.is_file() else {}
    values = {"mean": processor.get("image_mean"), "std": processor.get("image_std")}
    return Normalization(**{name: tuple(value) for name, value in values.items() if value})
