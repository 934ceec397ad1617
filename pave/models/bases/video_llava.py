"""Video-LLaVA-7B (Vicuna), from transformers' port or as published, with LanguageBind's tower that attends over time.

The port lost that attention when it was made: two bases with the same LLM. config.json tells which one a folder is.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
)

from pave.models.bases import _loading, _vicuna_chat
from pave.models.bases._loading import Settings
from pave.models.encoders import _state_dict, languagebind_video
from pave.types import UserError, VideoTokens
from pave.utils import hub_download

PORT, ORIGINAL = "LanguageBind/Video-LLaVA-7B-hf", "LanguageBind/Video-LLaVA-7B"
"""Published names, whose shapes are known without files."""
WHAT = "a Video-LLaVA checkpoint, the published one or the port for transformers"
VICUNA = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
TEXT_KEYS = (*VICUNA, "rope_theta", "hidden_act", "bos_token_id", "eos_token_id", "pad_token_id")
VISION = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 224,
}
"""CLIP ViT-L/14, of both towers."""
PROJECTOR = "model.mm_projector."
NOT_QUANTIZED = ["video_tower", "image_tower", "multi_modal_projector", "lm_head"]


class Vicuna(LlamaForCausalLM):
    """The LLM of a published checkpoint; the image tower is never read, the rest not here."""

    _keys_to_ignore_on_load_unexpected = (r"^model\.(video_tower|image_tower|mm_projector)\.",)


class Frames(nn.Module):
    """The port's tower, CLIP on each frame alone: float[N,F,3,S,S] -> float[N,F,1+P,W], a class token first."""

    frames = 1

    def __init__(self, hf: Any, layer: int) -> None:
        super().__init__()
        self.hf, self.layer = hf, layer
        self.reads: int = range(1 + hf.config.num_hidden_layers)[layer]
        """How many of its layers are needed."""
        self.image_size: int = hf.config.image_size

    def forward(self, pixels: Tensor) -> Tensor:
        states = self.hf(pixels.flatten(0, 1), output_hidden_states=True).hidden_states
        return states[self.layer].unflatten(0, pixels.shape[:2])


class VideoLlava(nn.Module):
    """encode, layout and lm; `hf` is the LLM alone, whichever class it came in."""

    lora_targets = r"model\.(language_model\.)?layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"

    vision_tower: Any

    def __init__(self, hf: Any, tower: nn.Module, projector: nn.Module, tokenizer: Any) -> None:
        super().__init__()
        self.hf, self.tokenizer = hf, tokenizer
        self.vision_tower, self.multi_modal_projector = tower, projector
        first, *_, last = (layer for layer in projector.modules() if isinstance(layer, nn.Linear))
        self.query_dim, self.embed_dim = first.in_features, last.out_features
        self.is_port = isinstance(tower, Frames)
        unread = range(tower.reads, tower.hf.config.num_hidden_layers) if isinstance(tower, Frames) else ()
        layers = "|".join(map(str, unread))
        self.rests = rf"vision_tower\.hf\.(vision_model\.)?(post_layernorm|encoder\.layers\.({layers}))\..*"
        """What no visual token comes from, and so never learns."""
        self.unit: int = self.vision_tower.frames
        """The number of frames is a multiple of it."""

    @property
    def lm(self) -> nn.Module:
        """The Llama layers."""
        return self.hf.get_decoder()

    @property
    def head(self) -> nn.Module:
        """hidden states -> vocabulary logits."""
        return self.hf.get_output_embeddings()

    def preprocess(self, frames: np.ndarray) -> Tensor:
        """uint8[T,H,W,3] -> float[T,3,S,S]: short side scaled, the middle, CLIP's normalisation; as each was fed."""
        pixels = port_pixels if self.is_port else languagebind_video.pixels
        return torch.stack([pixels(frame, self.vision_tower.image_size) for frame in frames])

    def encode(self, pixels: Tensor) -> VideoTokens:
        """float[B,T,3,S,S] -> query float[B,T,1+P,Q], embeds float[B,T,1+P,D]; the class tokens are among them."""
        weight = next(self.vision_tower.parameters())
        units = pixels.to(weight.dtype).flatten(0, 1).unflatten(0, (-1, self.unit))
        query = self.vision_tower(units).flatten(0, 1).unflatten(0, pixels.shape[:2])
        return VideoTokens(query, self.multi_modal_projector(query))

    def layout(self, embeds: Tensor) -> Tensor:
        """float[B,T,S,D] -> float[B,T*S,D]; no newlines."""
        return embeds.flatten(1, 2)

    def visual_tokens(self, frames: int, size: tuple[int, ...] = ()) -> int:
        """N of a video of so many frames. UserError: more than the LLM reads, or frames that the tower cannot group."""
        unit, room = self.unit, self.hf.config.get_text_config().max_position_embeddings
        if frames % unit:
            raise UserError(f"base.frames={frames}: this tower sees {unit} frames at once; set base.frames={unit}")
        tokens = frames * self._per_frame
        if tokens > room:
            raise UserError(
                f"base.frames={frames}: {tokens} visual tokens, the LLM has {room} places; set base.frames=8"
            )
        return tokens

    @property
    def _per_frame(self) -> int:
        hf = self.vision_tower.hf if self.is_port else self.vision_tower
        return hf.embeddings.position_embedding.num_embeddings

    def chat(
        self,
        question: str,
        history: tuple[tuple[str, str], ...] = (),
        answer: str | None = None,
        mask: Literal["answers", "official"] = "answers",
    ) -> _vicuna_chat.Encoded:
        """Ids and labels of a conversation about one video; no answer leaves it open for generation."""
        if mask == "official":
            raise UserError(
                "data.labels=official is for LLaVA-OneVision, on which the release trained; set data.labels=answers"
            )
        # The port's processor tokenises the text whole, the published code the pieces around the video.
        return _vicuna_chat.encode(self.tokenizer, _vicuna_chat.segments(question, history, answer), whole=self.is_port)


def port_pixels(picture: np.ndarray, size: int) -> Tensor:
    """uint8[H,W,3] -> float[3,size,size] as CLIP's processor in transformers: PIL bicubic, the middle, normalised."""
    height, width = picture.shape[:2]
    scaled = (size, int(size * height / width)) if width < height else (int(size * width / height), size)
    left, top = ((long - size) // 2 for long in scaled)
    resized = Image.fromarray(picture).resize(scaled, Image.Resampling.BICUBIC)
    x = torch.from_numpy(np.array(resized)[top : top + size, left : left + size]).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (languagebind_video.MEAN, languagebind_video.STD))
    return (x - mean) / std


def load(path: str, how: Settings = Settings(), weights: bool = True) -> VideoLlava:
    """A base from a folder or a hub name, in either layout. The embedding is never cut: no released patch expects it.

    Without `weights` it is a skeleton on the meta device; the published names then need no files at all. Raises
    UserError for settings it does not have, and naming missing, extra, misshapen tensors.
    """
    _loading.refuse(path, "video_llava", how)
    if not weights and path == PORT:
        return _port_skeleton(VideoLlavaConfig(text_config={**VICUNA, "vocab_size": 32064, "model_type": "llama"}))
    if not weights and path == ORIGINAL:
        return _original_skeleton(LlamaConfig(**VICUNA), VISION)
    folder = hub_download.folder(path, WHAT, ["*.json", "*.safetensors", "*.bin", "*.model"])
    raw = _loading.config(folder, WHAT)
    if raw.get("model_type") == "video_llava":
        if not weights:
            return _port_skeleton(VideoLlavaConfig.from_pretrained(folder))
        hf = _loading.pretrained(VideoLlavaForConditionalGeneration, folder, WHAT, **how.given(NOT_QUANTIZED))
        return _of_port(hf, _vicuna_chat.tokenizer(folder, hf.config.video_token_id))
    if "mm_video_tower" not in raw:
        raise UserError(
            f"{folder / 'config.json'}: has no mm_video_tower and model_type {raw.get('model_type')}; expected {WHAT}"
        )
    config = LlamaConfig(**{key: raw[key] for key in TEXT_KEYS if key in raw})
    if not weights:
        return _original_skeleton(config, {**VISION, **raw.get("vision_config", {})})
    hf = _loading.pretrained(Vicuna, folder, WHAT, config=config, **how.given(NOT_QUANTIZED))
    tower = languagebind_video.load(folder)
    projector = _projector(tower.pre_layrnorm.weight.shape[0], config.hidden_size)
    state = _state_dict.select(
        folder, lambda name: name.removeprefix(PROJECTOR) if name.startswith(PROJECTOR) else None
    )
    _state_dict.check(folder, WHAT, state, projector.state_dict())
    projector.load_state_dict(state, assign=True)
    return VideoLlava(hf, tower.to(how.dtype), projector.to(how.dtype), _vicuna_chat.tokenizer(folder)).eval()


def _of_port(hf: VideoLlavaForConditionalGeneration, tokenizer: Any) -> VideoLlava:
    """Its parts; the image tower goes."""
    inside = hf.model
    tower, projector = Frames(inside.video_tower, hf.config.vision_feature_layer), inside.multi_modal_projector
    inside.video_tower = inside.image_tower = inside.multi_modal_projector = None
    return VideoLlava(hf, tower, projector, tokenizer).eval()


def _projector(width: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, out), nn.GELU(), nn.Linear(out, out))


def _port_skeleton(config: VideoLlavaConfig) -> VideoLlava:
    with torch.device("meta"):
        return _of_port(VideoLlavaForConditionalGeneration(config), None)


def _original_skeleton(config: LlamaConfig, vision: dict[str, Any]) -> VideoLlava:
    width, edge = vision["hidden_size"], vision["image_size"] // vision["patch_size"]
    with torch.device("meta"):
        tower = languagebind_video.Tower(
            width,
            vision["intermediate_size"],
            vision["num_hidden_layers"],
            vision["num_attention_heads"],
            vision["patch_size"],
            edge,
        )
        return VideoLlava(Vicuna(config), tower, _projector(width, config.hidden_size), None)
