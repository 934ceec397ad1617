"""Video-Panda-7B: no pretrained tower but an alignment block of 24 M parameters, a two-layer projector and Vicuna.

How many tokens a frame has follows its shape. Every clip has as many frames as the config says, so the black frames
by which the published code completes short videos, which have fewer tokens, do not occur.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from pave.models import base
from pave.models.base import EncodedChat, History, Labels, LoadSettings
from pave.models.bases import _loading, _vicuna_chat
from pave.models.encoders import video_panda_tower
from pave.types import UserError, VideoTokens
from pave.utils import hub_download
from pave.utils.json_files import read_json

if TYPE_CHECKING:
    from typing_extensions import Self

PUBLISHED = "jh-yi/Video-Panda-7B"
"""Its shapes are known without files."""
EXPECTED = "a Video-Panda checkpoint"
TOWER_WIDTH, IMAGE_SIZE = 1024, 448
"""Of the tower's tokens, and pixels along one edge of its canvas."""
PROJECTOR_PREFIXES = ("model.video_projector.", "model.mm_projector.")
"""Of one projector for videos and images, which may be there twice."""
UNQUANTIZED = ("lm_head",)
ADVICE = f"set base.frames={video_panda_tower.VIDEO_FRAMES}"


class Vicuna(LlamaForCausalLM):
    """The LLM of a checkpoint; its other tensors are read elsewhere, or belong to teachers that are done."""

    _keys_to_ignore_on_load_unexpected = (
        r"^model\.(video|vision)_tower(_compressor)?\.",
        r"^model\.(video|mm)_projector\.",
        r"^model\.(video|image)_teacher\.",
    )


class Base(base.Base):
    """Video-Panda."""

    lora_targets = rf"model\.{base.LLM_PROJECTIONS}"
    frame_multiple = video_panda_tower.CHUNK_FRAMES
    token_pixels = video_panda_tower.TOKEN_PIXELS
    sample_frames = staticmethod(video_panda_tower.sample_frames)

    def __init__(
        self,
        hf: LlamaForCausalLM,
        tower: video_panda_tower.Tower,
        projector: nn.Module,
        tokenizer: PreTrainedTokenizerBase | None,
        image_size: int,
    ) -> None:
        super().__init__(tokenizer, len(tower.class_embedding), hf.config.hidden_size)
        self.hf = hf
        self.vision_tower = tower
        self.multi_modal_projector = projector
        self.image_size = image_size

    def train(self, mode: bool = True) -> Self:
        """Switch the mode; batch norm and dropout of a tower that does not learn stay in eval mode."""
        super().train(mode)
        self.vision_tower.train(mode and any(x.requires_grad for x in self.vision_tower.parameters()))
        return self

    def preprocess(self, frames: np.ndarray) -> Tensor:
        """Make float[T,3,h,w] of uint8[T,H,W,3]: PIL bicubic, the longest side fills the canvas, in whole tokens."""
        return video_panda_tower.prepare(frames, self.image_size)

    def encode(self, pixels: Tensor, prompt_ids: Tensor | None = None) -> VideoTokens:
        """Encode float[B,T,3,h,w] into query float[B,T,S,Q] and embeds float[B,T,S,D].

        Class and split tokens are among them.
        """
        weight = self.vision_tower.patch_embedding.weight
        canvases = video_panda_tower.to_canvas(pixels.to(weight.dtype), self.image_size)
        chunks = canvases.flatten(0, 1).unflatten(0, (-1, video_panda_tower.CHUNK_FRAMES))
        valid_box = video_panda_tower.valid_box(pixels.shape[-2], pixels.shape[-1], self.image_size)
        tokens = self.vision_tower(chunks, [valid_box] * pixels.shape[0] * pixels.shape[1])
        query = torch.stack(tokens).unflatten(0, pixels.shape[:2])
        return VideoTokens(query, self.multi_modal_projector(query))

    def num_visual_tokens(self, frames: int, size: tuple[int, ...] = ()) -> int:
        """N for so many frames of this height and width, as preprocessed.

        Raises UserError for frames that the tower cannot group, for more than the LLM reads, and for stored tokens,
        which tell no size.
        """
        if frames % self.frame_multiple:
            raise UserError(f"base.frames={frames}: this tower sees {self.frame_multiple} frames at once; {ADVICE}")
        if max(size, default=0) != self.image_size:
            raise UserError("stored video tokens do not tell the size of the frames; leave data.video_tokens empty")
        tokens = frames * video_panda_tower.num_tokens(video_panda_tower.valid_box(size[0], size[1], self.image_size))
        _loading.check_room(tokens, self.hf, ADVICE)
        return tokens

    def chat(
        self, question: str, history: History = (), answer: str | None = None, labels: Labels = "answers"
    ) -> EncodedChat:
        """Encode a conversation by Vicuna's template. Raises UserError for official labels."""
        _vicuna_chat.refuse_official_labels(labels)
        conversation = _vicuna_chat.segments(question, history, answer)
        return _vicuna_chat.encode(self.tokenizer, conversation, tag_is_token=False)

    @classmethod
    def load(cls, path: str, settings: LoadSettings = LoadSettings(), weights: bool = True) -> Self:
        """Load a base from a folder or a hub name; the published name needs no files without `weights`."""
        _loading.refuse_settings(cls, path, settings)
        if not weights and path == PUBLISHED:
            return cls._skeleton(LlamaConfig(**_loading.VICUNA), TOWER_WIDTH, IMAGE_SIZE)

        folder = hub_download.find_folder(path, EXPECTED, ["*.json", "*.safetensors", "*.bin", "*.model"])
        config_json = read_json(folder / "config.json", EXPECTED)
        tower_width = config_json.get("video_hidden_size")
        has_image_marks = config_json.get("mm_use_im_start_end")
        if tower_width is None or has_image_marks:
            raise UserError(
                f"{folder / 'config.json'}: video_hidden_size {tower_width}, mm_use_im_start_end {has_image_marks}; "
                f"expected {EXPECTED}, without marks around images"
            )
        config = _loading.vicuna_config(config_json)
        image_size = config_json.get("image_size", IMAGE_SIZE)
        if not weights:
            return cls._skeleton(config, tower_width, image_size)

        arguments = _loading.pretrained_arguments(settings, UNQUANTIZED)
        hf = _loading.load_pretrained(Vicuna, folder, EXPECTED, config=config, **arguments)
        tower = video_panda_tower.load(folder)
        widths = len(tower.class_embedding), config.hidden_size
        projector = _loading.load_projector(folder, EXPECTED, PROJECTOR_PREFIXES, *widths)
        tokenizer = _loading.load_tokenizer(folder)
        return cls(hf, tower.to(settings.dtype), projector.to(settings.dtype), tokenizer, image_size).eval()

    @classmethod
    def _skeleton(cls, config: LlamaConfig, tower_width: int, image_size: int) -> Self:
        with torch.device("meta"):
            tower = video_panda_tower.Tower(tower_width)
            projector = _loading.build_projector(tower_width, config.hidden_size)
            return cls(Vicuna(config), tower, projector, None, image_size)
