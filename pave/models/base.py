"""The contract of a base: what every video language model offers. Each module of models/bases has one class `Base`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pave.models.distillation_head import DistillationHead
from pave.types import VIDEO_TOKEN_ID, UserError, VideoTokens
from pave.utils import registry

if TYPE_CHECKING:
    from typing_extensions import Self

History = Sequence[tuple[str, str]]
"""Earlier (question, answer) turns of a conversation."""
Labels = Literal["answers", "official"]
"""Which tokens are supervised: the answers, or all that the official code of PAVE supervises."""
FrameRule = Callable[[int, float], np.ndarray]
"""Number of frames of a video and their rate (1/s) -> the indices of the key frames, int64[T]."""
LLM_PROJECTIONS = r"layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
"""All seven linear maps of every LLM layer, below the name of the LLM, for `Base.lora_targets`."""
Quantize = Literal["none", "int8", "nf4"]
Newline = Literal["grid", "frame", "one_token", "no_token"]
Pool = Literal["bilinear", "average", "max"]


class LoadSettings(NamedTuple):
    """How to load a base: the fields of `BaseConfig` that decide it. None stands for the base's own default."""

    dtype: torch.dtype = torch.float32
    """Of the weights."""
    attention: str = "sdpa"
    """Attention kernel of the tower and the LLM."""
    quantize: Quantize = "none"
    """Bits of the LLM's frozen weights."""
    newline: Newline | None = None
    """Where newline vectors stand among the visual tokens."""
    pool: Pool | None = None
    """Pooling of the tower's grid of tokens."""
    vision_heads: int | None = None
    """Attention heads of the tower, where its files do not tell."""


class EncodedChat(NamedTuple):
    """A conversation as token ids, with VIDEO_TOKEN_ID once for the video."""

    ids: list[int]
    labels: list[int]
    """IGNORE_INDEX where nothing is supervised."""
    prompt_ids: list[int] | None = None
    """The question in the tokens of the text tower of a base that is `prompt_conditioned`, else None."""


class Base(nn.Module, ABC):
    """A frozen video language model: tower, projector and LLM.

    A subclass sets `hf`, and names its modules `vision_tower` and `multi_modal_projector` where they are not inside
    `hf`: `base.trainable` and `pave show` find them by these names, and count all others as the LLM.
    """

    hf: PreTrainedModel
    """The transformers model that holds the LLM."""
    tokenizer: PreTrainedTokenizerBase
    """Of the LLM, with `pad_token_id`; not set on a base without weights."""
    query_dim: int
    """Q, width of the tower's tokens, which a patch reads."""
    embed_dim: int
    """D, width of the LLM's tokens, to which a patch adds."""
    distillation_head: DistillationHead | None
    """Maps hidden states of the LLM to a teacher's width; None where there is no teacher."""

    lora_targets: ClassVar[str]
    """Regular expression for the full names, inside `hf`, of the linear layers that get LoRA."""
    frame_multiple: int = 1
    """The number of key frames is a multiple of it."""
    prompt_conditioned: bool = False
    """Whether visual tokens depend on the question: `encode` needs `prompt_ids`, and no token can be stored."""
    multi_axis_positions: bool = False
    """Whether `position_ids` follow the size of the frames (M-RoPE); then no visual token can be stored."""
    token_pixels: int | None = None
    """Pixels along one edge of a visual token, where the tower can learn from a teacher: frames are then one class
    token, and rows of tokens that end in a split token."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None, query_dim: int, embed_dim: int) -> None:
        super().__init__()
        if tokenizer is not None:
            self.tokenizer = tokenizer
        self.query_dim = query_dim
        self.embed_dim = embed_dim
        self.distillation_head = None

    @classmethod
    @abstractmethod
    def load(cls, path: str, settings: LoadSettings = LoadSettings(), weights: bool = True) -> Self:
        """Load a base in eval mode from a folder or a hub name; without `weights` only its shapes, on the meta device.

        The embedding keeps its size; no official patch expects it cut, except those on LLaVA-OneVision. Raises
        UserError for settings that the base does not have, and naming missing, unexpected and misshapen tensors.
        """

    @classmethod
    def plugin_name(cls) -> str:
        """Name of the base in settings: that of its module, dotted unless it is one of pave's own."""
        return cls.__module__.removeprefix(f"{registry.PACKAGES['bases']}.")

    @property
    def untrainable(self) -> str:
        """Regular expression for the full names of tensors that never train, as no visual token comes from them."""
        return r"(?!)"

    @property
    def sample_frames(self) -> FrameRule | None:
        """The publishers' own choice of key frames, for `base.frame_sampling=native`; a static method in a subclass."""
        return None

    @property
    def llm(self) -> nn.Module:
        """The LLM's layers: `inputs_embeds` float[B,L,D] -> `last_hidden_state` float[B,L,D]."""
        return self.hf.get_decoder()

    @property
    def lm_head(self) -> nn.Module:
        """Map hidden states float[...,D] to logits float[...,V]."""
        return self.hf.get_output_embeddings()

    @abstractmethod
    def preprocess(self, frames: np.ndarray) -> Tensor:
        """Make pixels float[T,3,h,w] of key frames uint8[T,H,W,3], on the CPU.

        A base that takes several frames as one row gives float[T/2,2*3,h,w]. Sizes may differ from video to video;
        `encode` then sees each video alone. Raises UserError for frames that it cannot use.
        """

    def preprocess_images(self, images: Sequence[np.ndarray]) -> Tensor:
        """Make pixels float[N,3,h,w] of separate images uint8[H,W,3]. Raises UserError where a base knows none."""
        raise UserError(
            f"base.name={self.plugin_name()}: takes videos only, no images; leave out the questions about images"
        )

    @abstractmethod
    def encode(self, pixels: Tensor, prompt_ids: Tensor | None = None) -> VideoTokens:
        """Encode pixels float[B,T,3,h,w] into query float[B,T,S,Q] and embeds float[B,T,S,D].

        `prompt_ids` int[B,L] are the question, for a base that is `prompt_conditioned`. Features for inner layers of
        the LLM may stand behind D; patches and text have zeros there.
        """

    def arrange_tokens(self, embeds: Tensor) -> Tensor:
        """Put float[B,T,S,D] into the order of the LLM, float[B,N,D]; by default frame after frame, no newlines."""
        return embeds.flatten(1, 2)

    @abstractmethod
    def num_visual_tokens(self, frames: int, size: tuple[int, ...] = ()) -> int:
        """N for so many preprocessed frames of this height and width. Raises UserError where the LLM has no room."""

    def visual_token_ids(self, frames: int, size: tuple[int, ...], seconds: Tensor | None) -> list[int]:
        """Token ids of a video: VIDEO_TOKEN_ID N times, and the text that a base writes between its frames.

        `seconds` float[T] is when each preprocessed frame is shown.
        """
        return [VIDEO_TOKEN_ID] * self.num_visual_tokens(frames, size)

    def position_ids(
        self, ids: Tensor, mask: Tensor, videos: Sequence[Tensor], seconds: Sequence[Tensor] | None
    ) -> Tensor | None:
        """Positions int[A,B,L] of token ids int[B,L] where mask bool[B,L]; None where they are just 0, 1, 2, ...

        `videos` are the pixels and `seconds` the times of the videos in the rows, in order; a row's end may be cut.
        """
        return None

    @abstractmethod
    def chat(
        self, question: str, history: History = (), answer: str | None = None, labels: Labels = "answers"
    ) -> EncodedChat:
        """Encode a conversation about one video by the base's template; without `answer` it is open for generation."""


def get_base(name: str) -> type[Base]:
    """Find the class of a base by the name of its module.

    Raises UserError with the nearest name where there is no such module, or where it has no class `Base`.
    """
    plugin = vars(registry.load("bases", name)).get("Base")
    if not (isinstance(plugin, type) and issubclass(plugin, Base)):
        raise UserError(f"base.name={name}: the module has no class Base that derives from pave.models.base.Base")
    return plugin
