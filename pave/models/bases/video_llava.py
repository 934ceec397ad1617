"""Video-LLaVA-7B (Vicuna), from transformers' port or as published, with LanguageBind's tower that attends over time.

The port lost that attention when it was made: two bases with the same LLM. config.json tells which one a folder is.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
)

from pave.models import base
from pave.models.base import EncodedChat, History, Labels, LoadSettings
from pave.models.bases import _loading, _pixels, _qwen_chat, _vicuna_chat
from pave.models.encoders import languagebind_video
from pave.models.encoders._clip_layers import CLIP_MEAN, CLIP_STD
from pave.types import UserError, VideoTokens
from pave.utils import hub_download
from pave.utils.json_files import read_json

if TYPE_CHECKING:
    from typing_extensions import Self

PORT, ORIGINAL = "LanguageBind/Video-LLaVA-7B-hf", "LanguageBind/Video-LLaVA-7B"
"""Published names, whose shapes are known without files."""
EXPECTED = "a Video-LLaVA checkpoint, the published one or the port for transformers"
VISION = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 224,
}
"""CLIP ViT-L/14, of both towers."""
PROJECTOR_PREFIX = "model.mm_projector."
UNQUANTIZED = ("video_tower", "image_tower", "multi_modal_projector", "lm_head")


class Vicuna(LlamaForCausalLM):
    """The LLM of a published checkpoint; the image tower is never read, the other parts are not here."""

    _keys_to_ignore_on_load_unexpected = (r"^model\.(video_tower|image_tower|mm_projector)\.",)


class FrameTower(nn.Module):
    """The port's tower, CLIP on each frame alone: float[N,F,3,S,S] -> float[N,F,1+P,W], a class token first."""

    frames = 1

    def __init__(self, hf: CLIPVisionModel, layer: int) -> None:
        super().__init__()
        self.hf = hf
        self.layer = layer
        self.num_read_layers: int = range(1 + hf.config.num_hidden_layers)[layer]
        """Of the tower's layers, the first so many; what follows them is never read."""
        self.image_size: int = hf.config.image_size

    def forward(self, pixels: Tensor) -> Tensor:
        states = self.hf(pixels.flatten(0, 1), output_hidden_states=True).hidden_states
        return states[self.layer].unflatten(0, pixels.shape[:2])


class Base(base.Base):
    """Video-LLaVA; `hf` is the LLM alone, in the class of transformers that it came in."""

    lora_targets = rf"model\.(language_model\.)?{base.LLM_PROJECTIONS}"

    def __init__(
        self,
        hf: PreTrainedModel,
        tower: FrameTower | languagebind_video.Tower,
        projector: nn.Module,
        tokenizer: PreTrainedTokenizerBase | None,
    ) -> None:
        linears = [layer for layer in projector.modules() if isinstance(layer, nn.Linear)]
        super().__init__(tokenizer, linears[0].in_features, linears[-1].out_features)
        self.hf = hf
        self.vision_tower = tower
        self.multi_modal_projector = projector
        self.frame_multiple = tower.frames

    @property
    def is_port(self) -> bool:
        """Whether it came from the port for transformers."""
        return isinstance(self.vision_tower, FrameTower)

    @property
    def untrainable(self) -> str:
        """The layers of the port's tower that are never read."""
        tower, layers = self.vision_tower, ""
        if isinstance(tower, FrameTower):
            layers = "|".join(map(str, range(tower.num_read_layers, tower.hf.config.num_hidden_layers)))
        return rf"vision_tower\.hf\.(vision_model\.)?(post_layernorm|encoder\.layers\.({layers}))\..*"

    def preprocess(self, frames: np.ndarray) -> Tensor:
        """Make float[T,3,S,S] of uint8[T,H,W,3]: short side scaled, the middle, CLIP's normalisation.

        The published code and the port resize and round differently; each tower gets what it was trained with.
        """
        size = self.vision_tower.image_size
        if self.is_port:
            cropped = [crop_middle(frame, size) for frame in frames]
            return _pixels.normalize(cropped, CLIP_MEAN, CLIP_STD)
        return torch.stack([languagebind_video.normalized_frame(frame, size) for frame in frames])

    def encode(self, pixels: Tensor, prompt_ids: Tensor | None = None) -> VideoTokens:
        """Encode float[B,T,3,S,S] into query float[B,T,1+P,Q] and embeds float[B,T,1+P,D], class tokens first."""
        weight = next(self.vision_tower.parameters())
        groups = pixels.to(weight.dtype).flatten(0, 1).unflatten(0, (-1, self.frame_multiple))
        query = self.vision_tower(groups).flatten(0, 1).unflatten(0, pixels.shape[:2])
        return VideoTokens(query, self.multi_modal_projector(query))

    def num_visual_tokens(self, frames: int, size: tuple[int, ...] = ()) -> int:
        """N for so many frames. Raises UserError for more than the LLM reads, or frames that the tower cannot group."""
        multiple = self.frame_multiple
        if frames % multiple:
            raise UserError(
                f"base.frames={frames}: this tower sees {multiple} frames at once; set base.frames={multiple}"
            )
        clip = self.vision_tower.hf if isinstance(self.vision_tower, FrameTower) else self.vision_tower
        tokens = frames * clip.embeddings.position_embedding.num_embeddings
        _loading.check_room(tokens, self.hf, "set base.frames=8")
        return tokens

    def chat(
        self, question: str, history: History = (), answer: str | None = None, labels: Labels = "answers"
    ) -> EncodedChat:
        """Encode a conversation by Vicuna's template. Raises UserError for official labels."""
        _vicuna_chat.refuse_official_labels(labels)
        conversation = _vicuna_chat.segments(question, history, answer)
        # The port's processor tokenises the whole text, the published code the pieces around the video.
        return _vicuna_chat.encode(self.tokenizer, conversation, tag_is_token=self.is_port)

    @classmethod
    def load(cls, path: str, settings: LoadSettings = LoadSettings(), weights: bool = True) -> Self:
        """Load a base from a folder or a hub name, in either layout."""
        _loading.refuse_settings(cls, path, settings)
        if not weights and path == PORT:
            text = {**_loading.VICUNA, "vocab_size": 32064, "model_type": "llama"}
            return cls._port_skeleton(VideoLlavaConfig(text_config=text))
        if not weights and path == ORIGINAL:
            return cls._original_skeleton(LlamaConfig(**_loading.VICUNA), VISION)

        folder = hub_download.find_folder(path, EXPECTED, ["*.json", "*.safetensors", "*.bin", "*.model"])
        config_json = read_json(folder / "config.json", EXPECTED)
        arguments = _loading.pretrained_arguments(settings, UNQUANTIZED)
        if config_json.get("model_type") == "video_llava":
            if not weights:
                return cls._port_skeleton(VideoLlavaConfig.from_pretrained(folder))
            port = _loading.load_pretrained(VideoLlavaForConditionalGeneration, folder, EXPECTED, **arguments)
            return cls.of_port(port, _port_tokenizer(folder, port.config.video_token_id)).eval()

        if "mm_video_tower" not in config_json:
            raise UserError(
                f"{folder / 'config.json'}: has no mm_video_tower and model_type {config_json.get('model_type')}; "
                f"expected {EXPECTED}"
            )
        config = _loading.vicuna_config(config_json)
        if not weights:
            return cls._original_skeleton(config, {**VISION, **config_json.get("vision_config", {})})
        hf = _loading.load_pretrained(Vicuna, folder, EXPECTED, config=config, **arguments)
        tower = languagebind_video.load(folder)
        widths = tower.pre_layrnorm.weight.shape[0], config.hidden_size
        projector = _loading.load_projector(folder, EXPECTED, [PROJECTOR_PREFIX], *widths)
        tokenizer = _loading.load_tokenizer(folder)
        return cls(hf, tower.to(settings.dtype), projector.to(settings.dtype), tokenizer).eval()

    @classmethod
    def of_port(cls, port: VideoLlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerBase | None) -> Self:
        """Take the tower and the projector out of the port; its image tower goes."""
        tower = FrameTower(port.model.video_tower, port.config.vision_feature_layer)
        projector = port.model.multi_modal_projector
        port.model.video_tower = port.model.image_tower = port.model.multi_modal_projector = None
        return cls(port, tower, projector, tokenizer)

    @classmethod
    def _port_skeleton(cls, config: VideoLlavaConfig) -> Self:
        with torch.device("meta"):
            return cls.of_port(VideoLlavaForConditionalGeneration(config), None)

    @classmethod
    def _original_skeleton(cls, config: LlamaConfig, vision: Mapping[str, int]) -> Self:
        width = vision["hidden_size"]
        with torch.device("meta"):
            tower = languagebind_video.Tower(
                width,
                vision["intermediate_size"],
                vision["num_hidden_layers"],
                vision["num_attention_heads"],
                vision["patch_size"],
                vision["image_size"] // vision["patch_size"],
            )
            return cls(Vicuna(config), tower, _loading.build_projector(width, config.hidden_size), None)


def crop_middle(frame: np.ndarray, size: int) -> np.ndarray:
    """Make uint8[size,size,3] of uint8[H,W,3] as CLIP's processor in transformers: short side resized, the middle."""
    height, width = frame.shape[:2]
    if width < height:
        high, wide = int(size * height / width), size
    else:
        high, wide = size, int(size * width / height)

    y, x = (high - size) // 2, (wide - size) // 2
    return _pixels.resize(frame, high, wide)[y : y + size, x : x + size]


def _port_tokenizer(folder: Path, video_token_id: int) -> PreTrainedTokenizerBase:
    """Raises UserError where the tokenizer has another id for a video than config.json."""
    tokenizer = _loading.load_tokenizer(folder)
    if tokenizer.convert_tokens_to_ids(_qwen_chat.TAG) != video_token_id:
        raise UserError(
            f"{folder}: its tokenizer has no {_qwen_chat.TAG} of id {video_token_id}, as config.json says; "
            "copy all tokenizer files"
        )
    return tokenizer
