"""What Qwen2.5-VL and Qwen3-VL have in common: any resolution, merged tokens, positions in time, height and width.

The tower merges two frames and 2 x 2 patches into a token: T frames are t = T/2 rows, S tokens follow the frames'
size. Tower features before the merger are four times as many, so queries are the merged tokens.
"""

from __future__ import annotations

import inspect
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutputWithPooling

from pave.models import base
from pave.models.base import LoadSettings
from pave.models.bases import _loading, _pixels
from pave.types import VIDEO_TOKEN_ID, UserError, VideoTokens
from pave.utils import hub_download
from pave.utils.json_files import read_json

if TYPE_CHECKING:
    from typing_extensions import Self

UNQUANTIZED = ("visual", "lm_head")
FRAMES_PER_SECOND, MIN_FRAMES, MAX_FRAMES = 2.0, 4, 768
"""What the published processors take of a video."""
MAX_ASPECT = 200
"""Longer side over shorter side of a frame."""
VIDEO_TOKEN_TYPE = 2
"""Of `mm_token_type_ids`."""


class PixelSettings(NamedTuple):
    """How a checkpoint's processor makes pixels; the defaults are those of Qwen2.5-VL."""

    min_pixels: int = 128 * 28 * 28
    max_pixels: int = 768 * 28 * 28
    """Of a frame; for Qwen3-VL of all frames together."""
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)


class QwenVL(base.Base):
    """A Qwen-VL base; `hf` is the LLM alone. A subclass says how large frames are, and has its chat template."""

    lora_targets = rf"model\.language_model\.{base.LLM_PROJECTIONS}"
    multi_axis_positions = True

    model_type: ClassVar[str]
    """In config.json."""
    expected: ClassVar[str]
    """What a folder has to be, for error messages."""
    model_class: ClassVar[type[PreTrainedModel]]
    config_class: ClassVar[type[PreTrainedConfig]]
    published: ClassVar[Mapping[str, dict[str, object]]]
    """Settings of `config_class` by hub name, so that `pave show` needs no files."""
    default_pixels: ClassVar[PixelSettings] = PixelSettings()

    def __init__(
        self, hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, pixel_settings: PixelSettings
    ) -> None:
        width = hf.config.get_text_config().hidden_size
        super().__init__(tokenizer, width, width)
        self.vision_tower: PreTrainedModel = hf.model.visual
        hf.model.visual = None
        self.hf = hf
        self.pixel_settings = pixel_settings
        vision = hf.config.vision_config
        self.patch_size: int = vision.patch_size
        self.merge_size: int = vision.spatial_merge_size
        self.frame_multiple = vision.temporal_patch_size

    @abstractmethod
    def frame_size(self, frames: int, height: int, width: int) -> tuple[int, int]:
        """Height and width to which so many frames of a video are resized. Raises UserError for too long a frame."""

    def preprocess(self, frames: np.ndarray) -> Tensor:
        """Make float[t,2*3,h,w] of uint8[T,H,W,3]: PIL bicubic to the nearest size of whole tokens.

        The last frame of an odd number is taken twice. Raises UserError for a frame too long for its width.
        """
        padding = -len(frames) % self.frame_multiple
        height, width = self.frame_size(len(frames) + padding, *frames.shape[1:3])
        resized = [_pixels.resize(frame, height, width) for frame in frames]
        resized += resized[-1:] * padding
        pixels = _pixels.normalize(resized, self.pixel_settings.mean, self.pixel_settings.std)
        return pixels.unflatten(0, (-1, self.frame_multiple)).flatten(1, 2)

    def encode(self, pixels: Tensor, prompt_ids: Tensor | None = None) -> VideoTokens:
        """Encode float[B,t,2*3,h,w] into query and embeds, both float[B,t,S,D]: what the merger gives, row by row."""
        merged = self.run_tower(pixels).pooler_output
        embeds = merged.view(*pixels.shape[:2], -1, merged.shape[-1])
        return VideoTokens(embeds, embeds)

    def run_tower(self, pixels: Tensor) -> BaseModelOutputWithPooling:
        """Run the tower on float[B,t,2*3,h,w]; its outputs are float[B*t*S,C], video after video, row by row."""
        batch, rows = pixels.shape[:2]
        _, high, wide = self._grid(pixels.shape[1:])
        patch, merge = self.patch_size, self.merge_size

        # The processor's order: the patches of a token stand together, the two frames of a patch too.
        patches = pixels.reshape(
            batch, rows, self.frame_multiple, -1, high // merge, merge, patch, wide // merge, merge, patch
        )
        patches = patches.permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9).flatten(0, 5).flatten(1)
        grid = torch.tensor([[rows, high, wide]] * batch, device=pixels.device)
        return self.vision_tower(patches.to(self.vision_tower.dtype), grid_thw=grid)

    def _grid(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """Rows, and patches down and across, of preprocessed pixels of this shape."""
        return shape[0], shape[-2] // self.patch_size, shape[-1] // self.patch_size

    def num_visual_tokens(self, frames: int, size: tuple[int, ...] = ()) -> int:
        """N for so many rows with frames of this height and width, as preprocessed."""
        return frames * math.prod(size) // (self.patch_size * self.merge_size) ** 2

    def position_ids(
        self, ids: Tensor, mask: Tensor, videos: Sequence[Tensor], seconds: Sequence[Tensor] | None
    ) -> Tensor:
        """Positions int[3,B,L] in time, height and width, as the model's own `get_rope_index` gives them."""
        positions = ids.new_zeros(3, *ids.shape)
        video = 0
        for row, (row_ids, valid) in enumerate(zip(ids, mask.bool())):
            tokens = row_ids[valid]
            num_visual = int((tokens == VIDEO_TOKEN_ID).sum())
            if not num_visual:
                positions[:, row, valid] = torch.arange(len(tokens), device=ids.device)
                continue

            assert videos[video].ndim == 4, "stored video tokens do not tell the size of the frames"
            grid = self._grid(videos[video].shape)
            # `get_rope_index` knows only whole blocks of visual tokens; the end of this row may be cut.
            cut = tokens.new_full((-num_visual % self.tokens_in_block(grid),), VIDEO_TOKEN_ID)
            completed = self._video_positions(torch.cat([tokens, cut]), grid, seconds[video] if seconds else None)
            positions[:, row, valid] = completed[:, : len(tokens)]
            video += 1
        return positions

    def tokens_in_block(self, grid: tuple[int, int, int]) -> int:
        """Count the visual tokens that follow each other without text between them: here the whole video."""
        return math.prod(grid) // self.merge_size**2

    def _video_positions(self, ids: Tensor, grid: tuple[int, int, int], seconds: Tensor | None) -> Tensor:
        """Positions int[3,L] of the ids int[L] of a conversation about one video."""
        is_visual = ids == VIDEO_TOKEN_ID
        arguments = {
            "input_ids": ids.masked_fill(is_visual, self.hf.config.video_token_id)[None],
            "video_grid_thw": torch.tensor([grid], device=ids.device),
            "second_per_grid_ts": [_seconds_per_row(seconds)],
            "mm_token_type_ids": VIDEO_TOKEN_TYPE * is_visual.int()[None],
        }
        # Each model takes only some of them.
        get_rope_index = self.hf.model.get_rope_index
        parameters = inspect.signature(get_rope_index).parameters
        positions, _ = get_rope_index(**{name: value for name, value in arguments.items() if name in parameters})
        return positions[:, 0]

    @classmethod
    def load(cls, path: str, settings: LoadSettings = LoadSettings(), weights: bool = True) -> Self:
        """Load a base from a folder or a hub name; the published names need no files without `weights`."""
        _loading.refuse_settings(cls, path, settings)
        if not weights and path in cls.published:
            return cls._skeleton(cls.config_class(**cls.published[path]), cls.default_pixels)

        folder = hub_download.find_folder(path, cls.expected, ["*.json", "*.safetensors", "*.txt"])
        model_type = read_json(folder / "config.json", cls.expected).get("model_type")
        if model_type != cls.model_type:
            raise UserError(f"{folder / 'config.json'}: model_type is {model_type}, expected {cls.model_type}")
        pixel_settings = read_pixel_settings(folder, cls.default_pixels)
        if not weights:
            return cls._skeleton(cls.config_class.from_pretrained(folder), pixel_settings)

        arguments = _loading.pretrained_arguments(settings, UNQUANTIZED)
        hf = _loading.load_pretrained(cls.model_class, folder, cls.expected, **arguments)
        return cls(hf, AutoTokenizer.from_pretrained(folder), pixel_settings).eval()

    @classmethod
    def _skeleton(cls, config: PreTrainedConfig, pixel_settings: PixelSettings) -> Self:
        with torch.device("meta"):
            return cls(cls.model_class(config), None, pixel_settings)


def _seconds_per_row(seconds: Tensor | None) -> float:
    """Mean step of the rows' times float[t].

    The model cuts positions to whole numbers, so rounding has to make 1.0 of .9999999.
    """
    if seconds is None or len(seconds) == 1:
        return 1.0
    return round(float(seconds[-1] - seconds[0]) / (len(seconds) - 1), 3)


def fit_size(height: float, width: float, multiple: int, min_pixels: float, max_pixels: float) -> tuple[int, int]:
    """Height and width in multiples nearest to a frame's own, with `min_pixels` to `max_pixels` in all.

    Raises UserError for a frame that is too long for its width.
    """
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise UserError(f"a video of {width} x {height} pixels; expected at most {MAX_ASPECT} times as long as wide")

    high, wide = round(height / multiple) * multiple, round(width / multiple) * multiple
    if high * wide > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        high = max(multiple, math.floor(height / shrink / multiple) * multiple)
        wide = max(multiple, math.floor(width / shrink / multiple) * multiple)
    elif high * wide < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        high = math.ceil(height * grow / multiple) * multiple
        wide = math.ceil(width * grow / multiple) * multiple
    return high, wide


def read_pixel_settings(folder: Path, defaults: PixelSettings = PixelSettings()) -> PixelSettings:
    """Read what a folder's processor files say of videos; `defaults` fill in what they do not."""
    files = [folder / name for name in ("video_preprocessor_config.json", "preprocessor_config.json")]
    file = next((file for file in files if file.is_file()), None)
    processor = {} if file is None else read_json(file, "the settings of an image processor")
    size = processor.get("size") or {}
    values = {
        "min_pixels": processor.get("min_pixels") or size.get("shortest_edge"),
        "max_pixels": processor.get("max_pixels") or size.get("longest_edge"),
        "mean": processor.get("image_mean"),
        "std": processor.get("image_std"),
    }
    return defaults._replace(**{name: value for name, value in values.items() if value})


def published_frame_count(n: int, fps: float) -> float:
    """How many of n frames a Qwen processor takes: two a second, at least 4 and at most 768, if there are so many."""
    return min(max(n / fps * FRAMES_PER_SECOND, MIN_FRAMES), MAX_FRAMES, n)
