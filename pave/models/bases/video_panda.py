"""Video-Panda-7B: no pretrained tower but an alignment block of 24 M parameters, a two-layer projector and Vicuna.

How many tokens a frame has follows the shape of the picture. Every clip has as many frames as the config says, so the
black frames by which the published code completes short videos, which have fewer tokens, do not occur.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from pave.models.bases import _loading, _vicuna_chat
from pave.models.bases._loading import Settings
from pave.models.bases.video_llava import TEXT_KEYS, VICUNA
from pave.models.encoders import _state_dict, video_panda_tower
from pave.types import UserError, VideoTokens
from pave.utils import hub_download

PUBLISHED = "jh-yi/Video-Panda-7B"
"""Its shapes are known without files."""
WHAT = "a Video-Panda checkpoint"
WIDTH, SIZE = 1024, 448
"""Of the tower's tokens, and pixels a side of its canvas."""
PROJECTORS = ("model.video_projector.", "model.mm_projector.")
"""Of the projector's names: one for videos and pictures, which may be there twice."""
NOT_QUANTIZED = ["lm_head"]


class Vicuna(LlamaForCausalLM):
    """The LLM of a checkpoint; what else is in there is read by others, or taught the model and is done."""

    _keys_to_ignore_on_load_unexpected = (
        r"^model\.(video|vision)_tower(_compressor)?\.",
        r"^model\.(video|mm)_projector\.",
        r"^model\.(video|image)_teacher\.",
    )


class VideoPanda(nn.Module):
    """encode, layout and lm."""

    lora_targets = r"model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
    unit = video_panda_tower.CHUNK
    """The number of frames is a multiple of it."""
    choose = staticmethod(video_panda_tower.choose)
    cell = video_panda_tower.CELL
    """Pixels a side of a token, for a teacher to see as much in one."""

    def __init__(
        self, hf: LlamaForCausalLM, tower: video_panda_tower.Tower, projector: nn.Module, tokenizer: Any, size: int
    ) -> None:
        super().__init__()
        self.hf, self.tokenizer, self.image_size = hf, tokenizer, size
        self.vision_tower, self.multi_modal_projector = tower, projector
        self.query_dim: int = len(tower.class_embedding)
        self.embed_dim: int = hf.config.hidden_size

    def train(self, mode: bool = True) -> VideoPanda:
        """Batch norm and dropout of the tower are for its own training; where it does not learn, they rest."""
        super().train(mode)
        self.vision_tower.train(mode and any(x.requires_grad for x in self.vision_tower.parameters()))
        return self

    @property
    def lm(self) -> nn.Module:
        """The Llama layers."""
        return self.hf.model

    @property
    def head(self) -> nn.Module:
        """hidden states -> vocabulary logits."""
        return self.hf.lm_head

    def preprocess(self, frames: np.ndarray) -> Tensor:
        """uint8[T,H,W,3] -> float[T,3,h,w]: PIL bicubic, the longest side fills the canvas, both are whole tokens."""
        return video_panda_tower.prepare(frames, self.image_size)

    def encode(self, pixels: Tensor) -> VideoTokens:
        """float[B,T,3,h,w] -> query float[B,T,S,Q], embeds float[B,T,S,D]; class and split tokens are among them."""
        weight = self.vision_tower.patch_embedding.weight
        canvases = video_panda_tower.spread(pixels.to(weight.dtype), self.image_size)
        canvases = canvases.flatten(0, 1).unflatten(0, (-1, video_panda_tower.CHUNK))
        area = video_panda_tower.box(pixels.shape[-2], pixels.shape[-1], self.image_size)
        tokens = self.vision_tower(canvases, [area] * pixels.shape[0] * pixels.shape[1])
        query = torch.stack(tokens).unflatten(0, pixels.shape[:2])
        return VideoTokens(query, self.multi_modal_projector(query))

    def layout(self, embeds: Tensor) -> Tensor:
        """float[B,T,S,D] -> float[B,T*S,D]; rows are closed by the tower's own split tokens."""
        return embeds.flatten(1, 2)

    def visual_tokens(self, frames: int, size: tuple[int, ...]) -> int:
        """N of a video of so many frames, of this height and width as preprocessed.

        UserError: frames that the tower cannot group, more than the LLM reads, stored tokens, which tell no size.
        """
        if frames % video_panda_tower.CHUNK:
            raise UserError(
                f"base.frames={frames}: this tower sees 4 frames at once; set base.frames={video_panda_tower.FRAMES}"
            )
        if max(size) != self.image_size:
            raise UserError("stored video tokens do not tell the size of the pictures; leave data.video_tokens empty")
        tokens = frames * video_panda_tower.count(video_panda_tower.box(size[0], size[1], self.image_size))
        room = self.hf.config.max_position_embeddings
        if tokens > room:
            raise UserError(
                f"base.frames={frames}: {tokens} visual tokens, the LLM has {room} places; "
                f"set base.frames={video_panda_tower.FRAMES}"
            )
        return tokens

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
        return _vicuna_chat.encode(self.tokenizer, _vicuna_chat.segments(question, history, answer), whole=False)


def load(path: str, how: Settings = Settings(), weights: bool = True) -> VideoPanda:
    """A base from a folder or a hub name. The embedding is never cut: no released patch expects it.

    Without `weights` it is a skeleton on the meta device; the published name then needs no files at all. Raises
    UserError for settings it does not have, and naming missing, extra, misshapen tensors.
    """
    _loading.refuse(path, "video_panda", how)
    if not weights and path == PUBLISHED:
        return _skeleton(LlamaConfig(**VICUNA), WIDTH, SIZE)
    folder = hub_download.folder(path, WHAT, ["*.json", "*.safetensors", "*.bin", "*.model"])
    raw = _loading.config(folder, WHAT)
    if "video_hidden_size" not in raw or raw.get("mm_use_im_start_end"):
        raise UserError(
            f"{folder / 'config.json'}: video_hidden_size {raw.get('video_hidden_size')}, mm_use_im_start_end "
            f"{raw.get('mm_use_im_start_end')}; expected {WHAT}, without marks around pictures"
        )
    config = LlamaConfig(**{key: raw[key] for key in TEXT_KEYS if key in raw})
    size = raw.get("image_size", SIZE)
    if not weights:
        return _skeleton(config, raw["video_hidden_size"], size)
    hf = _loading.pretrained(Vicuna, folder, WHAT, config=config, **how.given(NOT_QUANTIZED))
    tower = video_panda_tower.load(folder)
    projector = _projector(len(tower.class_embedding), config.hidden_size)
    state = _state_dict.select(folder, _projector_name)
    _state_dict.check(folder, WHAT, state, projector.state_dict())
    projector.load_state_dict(state, assign=True)
    return VideoPanda(hf, tower.to(how.dtype), projector.to(how.dtype), _vicuna_chat.tokenizer(folder), size).eval()


def _projector(width: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, out), nn.GELU(), nn.Linear(out, out))


def _projector_name(name: str) -> str | None:
    return next((name.removeprefix(prefix) for prefix in PROJECTORS if name.startswith(prefix)), None)


def _skeleton(config: LlamaConfig, width: int, size: int) -> VideoPanda:
    """Shapes without weights."""
    with torch.device("meta"):
        projector = _projector(width, config.hidden_size)
        return VideoPanda(Vicuna(config), video_panda_tower.Tower(width), projector, None, size)
