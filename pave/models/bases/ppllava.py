"""PPLLaVA-7B: CLIP's tower with a branch over time, pooling weighted by the question, and Vicuna, of LLaVA-NeXT.

What the LLM sees depends on the question, so no two questions share visual tokens and none can be stored. Patches add
to the pooled tokens: they are 18 times fewer, and pooling is a sum whose weights no patch can change, so what is added
before it comes out as its weighted mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from pave.models import base
from pave.models.base import EncodedChat, History, Labels, LoadSettings
from pave.models.bases import _loading, _pixels, _vicuna_chat
from pave.models.encoders import ppllava_projector
from pave.models.encoders._clip_layers import CLIP_MEAN, CLIP_STD
from pave.models.encoders.ppllava_clip import NUM_POSITIONS, VisionTower
from pave.models.encoders.ppllava_projector import IMAGE_WINDOW, VIDEO_WINDOW, Projector, Sizes
from pave.types import UserError, VideoTokens
from pave.utils import hub_download
from pave.utils.json_files import read_json

if TYPE_CHECKING:
    from typing_extensions import Self

EXPECTED = "a PPLLaVA checkpoint on Vicuna, with its longer text tower"
CLIP = "openai/clip-vit-large-patch14-336"
"""Whose tokenizer reads the questions."""
TAG = "<image>"
OPENING = f"USER: {TAG}\n"
FRAMES_PER_WINDOW = VIDEO_WINDOW[0]
IMAGE_SIZE = 336
UNQUANTIZED = ("lm_head",)
TOKENIZER_SOURCE = "llava-hf/llava-v1.6-vicuna-7b-hf"
REQUIRED_CONFIG = {
    "pooling": "ppllava",
    "extend_clip": True,
    "pooling_kernel": list(VIDEO_WINDOW),
    "pooling_stride": list(VIDEO_WINDOW),
}


class Vicuna(LlamaForCausalLM):
    """The LLM of a checkpoint; towers and projector are read elsewhere, newlines stand between images only."""

    _keys_to_ignore_on_load_unexpected = (r"^vision_tower\.", r"^multi_modal_projector\.", r"^image_newline$")


class Base(base.Base):
    """PPLLaVA."""

    lora_targets = rf"model\.{base.LLM_PROJECTIONS}"
    # Of the towers only the branch over time ever learns.
    untrainable = r"vision_tower\.(?!btadapter).*|multi_modal_projector\.(clip_text_model\..*|logit_scale)"
    frame_multiple = FRAMES_PER_WINDOW
    prompt_conditioned = True

    def __init__(
        self,
        hf: LlamaForCausalLM,
        tower: VisionTower,
        projector: Projector,
        tokenizer: PreTrainedTokenizerBase | None,
        prompt_tokenizer: PreTrainedTokenizerBase | None,
        temperature: float,
    ) -> None:
        super().__init__(tokenizer, projector.linear_1.in_features, projector.linear_1.out_features)

        self.hf = hf
        self.vision_tower = tower
        self.multi_modal_projector = projector
        # Not set on a base without weights, as `tokenizer`.
        if prompt_tokenizer is not None:
            self.prompt_tokenizer = prompt_tokenizer
        self.temperature = temperature
        self.image_size = tower.image_size
        self.edge: int = tower.image_size // tower.embeddings.patch_embedding.kernel_size[0]
        """Tokens along one edge of a frame, before they are pooled."""

    def preprocess(self, frames: np.ndarray) -> Tensor:
        """Make float[T/2,2*3,S,S] of uint8[T,H,W,3]: frames in pairs. Raises UserError for an odd number of them."""
        if len(frames) % FRAMES_PER_WINDOW:
            raise UserError(f"base.frames={len(frames)}: frames are pooled in pairs; set an even number")
        return self.preprocess_images(frames).unflatten(0, (-1, FRAMES_PER_WINDOW)).flatten(1, 2)

    def preprocess_images(self, images: Sequence[np.ndarray] | np.ndarray) -> Tensor:
        """Make float[N,3,S,S] of uint8[H,W,3] each: PIL bicubic, aspect ignored, CLIP's normalisation.

        Raises UserError for more than the branch over time knows.
        """
        tower = self.vision_tower
        if tower.depth and len(images) > tower.max_frames:
            raise UserError(f"base.frames={len(images)}: the tower knows {tower.max_frames} moments; set no more")
        resized = [_pixels.resize(image, self.image_size, self.image_size) for image in images]
        return _pixels.normalize(resized, CLIP_MEAN, CLIP_STD)

    def encode(self, pixels: Tensor, prompt_ids: Tensor | None = None) -> VideoTokens:
        """Encode float[B,t,2*3,S,S], or images float[B,t,3,S,S], into query float[B,t,S,Q], embeds float[B,t,S,D].

        `prompt_ids` int[B,L] are the questions in CLIP's tokens.
        """
        assert prompt_ids is not None, "PPLLaVA pools by the question"
        weight = self.multi_modal_projector.linear_1.weight
        frames = pixels.to(weight.dtype).unflatten(2, (-1, 3))
        tokens = self.vision_tower(frames.flatten(1, 2))
        projected, relevance = self.multi_modal_projector(tokens, prompt_ids)
        window = VIDEO_WINDOW if frames.shape[2] == FRAMES_PER_WINDOW else IMAGE_WINDOW
        return VideoTokens(self.pool(tokens, relevance, window), self.pool(projected, relevance, window))

    def pool(self, tokens: Tensor, relevance: Tensor, window: ppllava_projector.Size) -> Tensor:
        """Pool float[B,T,P,C] in windows of frames, rows and columns, by relevance float[B,T,P]: float[B,t,S,C]."""
        grid, weights = self._grid(tokens), self._grid(relevance)
        return ppllava_projector.weighted_pool(grid, weights, window, temperature=self.temperature).flatten(2, 3)

    def _grid(self, x: Tensor) -> Tensor:
        """float[B,T,P,...] -> float[B,T,h,w,...]"""
        return x.unflatten(2, (self.edge, self.edge))

    def num_visual_tokens(self, frames: int, size: tuple[int, ...] = ()) -> int:
        """N for so many pairs of frames, or so many images, of this height and width, as preprocessed.

        Raises UserError for more tokens than the LLM reads, and for stored tokens.
        """
        if size and tuple(size) != (self.image_size, self.image_size):
            raise UserError("video tokens of PPLLaVA depend on the question; leave data.video_tokens empty")
        _, high, wide = ppllava_projector.pooled_size(
            (FRAMES_PER_WINDOW, self.edge, self.edge), VIDEO_WINDOW, VIDEO_WINDOW
        )
        tokens = frames * high * wide
        _loading.check_room(tokens, self.hf, "set fewer base.frames, or images")
        return tokens

    def chat(
        self, question: str, history: History = (), answer: str | None = None, labels: Labels = "answers"
    ) -> EncodedChat:
        """Encode a conversation by Vicuna's template, and the question in CLIP's tokens, never an answer.

        With official labels `prompt_ids` are the whole conversation, where there is an answer to be supervised.
        """
        prompt = question
        if labels == "official" and answer is not None:
            # Quirk: in its training the tower that says which patches matter has read the answer.
            prompt = " ".join(text for turn in (*history, (question, answer)) for text in turn)
        prompt_ids = self.prompt_tokenizer(prompt, truncation=True, max_length=NUM_POSITIONS).input_ids

        conversation = _vicuna_chat.segments(question, history, answer, OPENING)
        encoded = _vicuna_chat.encode(self.tokenizer, conversation, tag_is_token=True, tag=TAG)
        return encoded._replace(prompt_ids=prompt_ids)

    @classmethod
    def load(cls, path: str, settings: LoadSettings = LoadSettings(), weights: bool = True) -> Self:
        """Load a base from a folder or a hub name, with the tokenizer of llava-v1.6-vicuna-7b-hf in it.

        CLIP's tokenizer is in its folder `clip`, or comes from the hub.
        """
        _loading.refuse_settings(cls, path, settings)
        folder = hub_download.find_folder(path, EXPECTED, ["*.json", "*.safetensors", "*.bin", "*.model"])
        config_json = read_json(folder / "config.json", EXPECTED)
        _check_config(folder / "config.json", config_json)
        config = LlamaConfig(**config_json["text_config"])
        temperature = config_json.get("pooling_temp", ppllava_projector.TEMPERATURE)
        if not weights:
            with torch.device("meta"):
                tower, projector = ppllava_projector.build(_sizes(config_json, config))
                return cls(Vicuna(config), tower, projector, None, None, temperature)

        arguments = _loading.pretrained_arguments(settings, UNQUANTIZED)
        names = {r"^language_model\.": ""}
        hf = _loading.load_pretrained(Vicuna, folder, EXPECTED, config=config, key_mapping=names, **arguments)
        tower, projector = ppllava_projector.load(folder)
        tower, projector = tower.to(settings.dtype), projector.to(settings.dtype)
        return cls(hf, tower, projector, _load_tokenizer(folder), _load_prompt_tokenizer(folder), temperature).eval()


def _check_config(file: Path, config_json: Mapping[str, Any]) -> None:
    """Raises UserError for another model, or another kind of this one."""
    for name, expected in REQUIRED_CONFIG.items():
        actual = config_json.get(name)
        if actual != expected:
            raise UserError(f"{file}: {name} is {actual}, expected {expected}; give {EXPECTED}")


def _sizes(config_json: Mapping[str, Any], config: LlamaConfig) -> Sizes:
    """Sizes from config.json; it says nothing of the text tower, which is that of CLIP-L."""
    vision, defaults = config_json["vision_config"], Sizes()
    patch = vision.get("patch_size", defaults.patch)

    return defaults._replace(
        width=vision.get("hidden_size", defaults.width),
        inner=vision.get("intermediate_size", defaults.inner),
        layers=vision.get("num_hidden_layers", defaults.layers),
        heads=vision.get("num_attention_heads", defaults.heads),
        patch=patch,
        edge=vision.get("image_size", IMAGE_SIZE) // patch,
        depth=config_json.get("btadapter_depth", defaults.depth) if config_json.get("btadapter") else 0,
        max_frames=config_json.get("max_T", defaults.max_frames),
        shared=vision.get("projection_dim", defaults.shared),
        out=config.hidden_size,
    )


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Raises UserError where the folder has no tokenizer, or one without the tag of an image."""
    if not (folder / "tokenizer_config.json").is_file():
        raise UserError(f"{folder}: no tokenizer in it; copy those files of {TOKENIZER_SOURCE} into it")
    return _loading.load_tokenizer(folder, [TAG], f"copy that of {TOKENIZER_SOURCE} into it")


def _load_prompt_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load CLIP's tokenizer."""
    clip_folder = folder / "clip"
    if not clip_folder.is_dir():
        patterns = ["tokenizer*.json", "vocab.json", "merges.txt", "special_tokens_map.json", "config.json"]
        clip_folder = hub_download.find_folder(CLIP, "CLIP's tokenizer", patterns)
    return AutoTokenizer.from_pretrained(clip_folder)
