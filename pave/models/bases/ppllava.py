"""PPLLaVA-7B: CLIP's tower with a branch over time, pooling guided by the question, and Vicuna, of LLaVA-NeXT.

What the LLM sees depends on the question, so no two questions share visual tokens and none can be stored. Patches add
to the pooled tokens: they are 18 times fewer, and pooling is a sum whose weights no patch can change, so what is added
before it comes out as its weighted mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from pave.models.bases import _loading, _vicuna_chat
from pave.models.bases._loading import Settings
from pave.models.encoders import ppllava_projector
from pave.models.encoders.languagebind_video import MEAN, STD
from pave.models.encoders.ppllava_clip import POSITIONS, Vision
from pave.models.encoders.ppllava_projector import IMAGE, Projector, Sizes
from pave.models.encoders.ppllava_projector import VIDEO as WINDOW
from pave.types import UserError, VideoTokens
from pave.utils import hub_download

WHAT = "a PPLLaVA checkpoint on Vicuna, with its longer text tower"
CLIP = "openai/clip-vit-large-patch14-336"
"""Whose tokenizer reads the questions."""
TAG = "<image>"
OPENING = f"USER: {TAG}\n"
TOGETHER = WINDOW[0]
"""Frames of a window."""
NOT_QUANTIZED = ["lm_head"]


class Vicuna(LlamaForCausalLM):
    """The LLM of a checkpoint; towers and projector are read by others, newlines stand between pictures only."""

    _keys_to_ignore_on_load_unexpected = (r"^vision_tower\.", r"^multi_modal_projector\.", r"^image_newline$")


class PPLLaVA(nn.Module):
    """encode, layout and lm."""

    lora_targets = r"model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
    rests = r"vision_tower\.(?!btadapter).*|multi_modal_projector\.(clip_text_model\..*|logit_scale)"
    """Of the towers only the branch over time ever learns."""
    unit = TOGETHER
    """The number of frames is a multiple of it."""
    by_question = True
    """The same video looks different for every question."""

    def __init__(
        self, hf: LlamaForCausalLM, tower: Vision, projector: Projector, tokenizer: Any, reader: Any, temperature: float
    ) -> None:
        super().__init__()
        self.hf, self.tokenizer, self.reader, self.temperature = hf, tokenizer, reader, temperature
        self.vision_tower, self.multi_modal_projector = tower, projector
        self.image_size: int = tower.image_size
        self.edge: int = tower.image_size // tower.embeddings.patch_embedding.kernel_size[0]
        """Tokens a side of a frame, before they are pooled."""
        self.query_dim, self.embed_dim = projector.linear_1.in_features, projector.linear_1.out_features

    @property
    def lm(self) -> nn.Module:
        """The Llama layers."""
        return self.hf.model

    @property
    def head(self) -> nn.Module:
        """hidden states -> vocabulary logits."""
        return self.hf.lm_head

    def preprocess(self, frames: np.ndarray) -> Tensor:
        """uint8[T,H,W,3] -> float[T/2,2*3,S,S]: PIL bicubic, aspect ignored, CLIP's normalisation, frames in pairs.

        UserError: an odd number of frames.
        """
        if len(frames) % TOGETHER:
            raise UserError(f"base.frames={len(frames)}: frames are pooled in pairs; set an even number")
        return self._prepare(frames).unflatten(0, (-1, TOGETHER)).flatten(1, 2)

    def preprocess_pictures(self, pictures: Sequence[np.ndarray]) -> Tensor:
        """uint8[H,W,3] each -> float[N,3,S,S], as frames but not in pairs."""
        return self._prepare(pictures)

    def _prepare(self, frames: Sequence[np.ndarray] | np.ndarray) -> Tensor:
        """float[T,3,S,S]. UserError: more than the branch over time knows."""
        tower = self.vision_tower
        if tower.depth and len(frames) > tower.moments:
            raise UserError(f"base.frames={len(frames)}: the tower knows {tower.moments} moments; set no more")
        size = (self.image_size, self.image_size)
        resized = [np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)) for frame in frames]
        x = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(x).view(3, 1, 1) for x in (MEAN, STD))
        return (x - mean) / std

    def encode(self, pixels: Tensor, guides: Tensor) -> VideoTokens:
        """float[B,t,2*3,S,S] and questions in CLIP's tokens int[B,L] -> query float[B,t,S,Q], embeds float[B,t,S,D].

        Pictures are float[B,t,3,S,S].
        """
        weight = self.multi_modal_projector.linear_1.weight
        frames = pixels.to(weight.dtype).unflatten(2, (-1, 3))
        window = WINDOW if frames.shape[2] == TOGETHER else IMAGE
        tokens = self.vision_tower(frames.flatten(1, 2))
        projected, weights = self.multi_modal_projector(tokens, guides)
        query, embeds = (
            ppllava_projector.pool(self._grid(x), self._grid(weights), window, temperature=self.temperature).flatten(
                2, 3
            )
            for x in (tokens, projected)
        )
        return VideoTokens(query, embeds)

    def _grid(self, x: Tensor) -> Tensor:
        """float[B,T,P,...] -> float[B,T,h,w,...]"""
        return x.unflatten(2, (self.edge, self.edge))

    def layout(self, embeds: Tensor) -> Tensor:
        """float[B,t,S,D] -> float[B,t*S,D]; no newlines."""
        return embeds.flatten(1, 2)

    def visual_tokens(self, frames: int, size: tuple[int, ...] = ()) -> int:
        """N of a video of so many pairs of frames, or of so many pictures, of this height and width as preprocessed.

        UserError: more tokens than the LLM reads, stored tokens.
        """
        if size and tuple(size) != (self.image_size, self.image_size):
            raise UserError("video tokens of PPLLaVA depend on the question; leave data.video_tokens empty")
        _, high, wide = ppllava_projector.pooled_size((TOGETHER, self.edge, self.edge), WINDOW, WINDOW)
        tokens, room = frames * high * wide, self.hf.config.max_position_embeddings
        if tokens > room:
            raise UserError(f"{tokens} visual tokens, the LLM has {room} places; set fewer base.frames, or pictures")
        return tokens

    def chat(
        self,
        question: str,
        history: tuple[tuple[str, str], ...] = (),
        answer: str | None = None,
        mask: Literal["answers", "official"] = "answers",
    ) -> _vicuna_chat.Encoded:
        """Ids and labels of a conversation about one video, and in CLIP's tokens the question, never an answer.

        With mask `release` the guide is the whole conversation, where there is an answer to be learnt.
        """
        pieces = _vicuna_chat.segments(question, history, answer, OPENING)
        text = question
        if mask == "official" and answer is not None:
            # Quirk: in its training the tower that says which patches matter has read the answer.
            text = " ".join(said for turn in (*history, (question, answer)) for said in turn)
        guide = self.reader(text, truncation=True, max_length=POSITIONS).input_ids
        return _vicuna_chat.encode(self.tokenizer, pieces, whole=True, tag=TAG)._replace(guide=guide)


def load(path: str, how: Settings = Settings(), weights: bool = True) -> PPLLaVA:
    """A base from a folder with the tokenizer of llava-v1.6-vicuna-7b-hf; CLIP's is in its folder `clip` or the hub's.

    The embedding is never cut: no released patch expects it. Without `weights` it is a skeleton on the meta device.
    Raises UserError for settings it does not have, and naming missing, extra, misshapen tensors.
    """
    _loading.refuse(path, "ppllava", how)
    folder = hub_download.folder(path, WHAT, ["*.json", "*.safetensors", "*.bin", "*.model"])
    raw = _loading.config(folder, WHAT)
    _check(folder / "config.json", raw)
    config, temperature = LlamaConfig(**raw["text_config"]), raw.get("pooling_temp", ppllava_projector.TEMPERATURE)
    if not weights:
        with torch.device("meta"):
            tower, projector = ppllava_projector.build(_sizes(raw, config))
            return PPLLaVA(Vicuna(config), tower, projector, None, None, temperature)
    names = {r"^language_model\.": ""}
    hf = _loading.pretrained(Vicuna, folder, WHAT, config=config, key_mapping=names, **how.given(NOT_QUANTIZED))
    tower, projector = ppllava_projector.load(folder)
    tokenizer, reader = _tokenizer(folder), _reader(folder)
    return PPLLaVA(hf, tower.to(how.dtype), projector.to(how.dtype), tokenizer, reader, temperature).eval()


def _check(file: Path, raw: dict[str, Any]) -> None:
    """UserError: another model, or another kind of this one."""
    expected = {
        "pooling": "ppllava",
        "extend_clip": True,
        "pooling_kernel": list(WINDOW),
        "pooling_stride": list(WINDOW),
    }
    for name, value in expected.items():
        found = raw.get(name)
        if (list(found) if isinstance(found, list | tuple) else found) != value:
            raise UserError(f"{file}: {name} is {found}, expected {value}; give {WHAT}")


def _sizes(raw: dict[str, Any], config: LlamaConfig) -> Sizes:
    """As config.json tells them; it says nothing of the text tower, which is that of CLIP-L."""
    vision, known = raw["vision_config"], Sizes()
    return known._replace(
        width=vision.get("hidden_size", known.width),
        inner=vision.get("intermediate_size", known.inner),
        layers=vision.get("num_hidden_layers", known.layers),
        heads=vision.get("num_attention_heads", known.heads),
        patch=vision.get("patch_size", known.patch),
        edge=vision.get("image_size", 336) // vision.get("patch_size", known.patch),
        depth=raw.get("btadapter_depth", known.depth) if raw.get("btadapter") else 0,
        moments=raw.get("max_T", known.moments),
        shared=vision.get("projection_dim", known.shared),
        out=config.hidden_size,
    )


def _tokenizer(folder: Path) -> Any:
    """UserError: none in the folder, or one without the mark of a picture."""
    if not (folder / "tokenizer_config.json").is_file():
        raise UserError(f"{folder}: no tokenizer in it; copy those files of llava-hf/llava-v1.6-vicuna-7b-hf into it")
    made = _vicuna_chat.tokenizer(folder)
    if TAG not in made.get_vocab():
        raise UserError(f"{folder}: its tokenizer has no {TAG}; copy that of llava-hf/llava-v1.6-vicuna-7b-hf into it")
    return made


def _reader(folder: Path) -> Any:
    """CLIP's tokenizer."""
    inside = folder / "clip"
    patterns = ["tokenizer*.json", "vocab.json", "merges.txt", "special_tokens_map.json", "config.json"]
    return AutoTokenizer.from_pretrained(
        inside if inside.is_dir() else hub_download.folder(CLIP, "CLIP's tokenizer", patterns)
    )
