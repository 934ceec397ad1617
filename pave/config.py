"""The configuration of a run: frozen dataclasses, strict YAML, key=value overrides; dataclass < YAML < key=value."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from pave.types import UserError
from pave.utils import settings

T = TypeVar("T")
ROPE_HEAD_DIM = 128  # channels of a head with 3D rotary embedding
MINIMA: Mapping[str, Mapping[str, float]] = {
    "": {"patch_lr": 0, "dpo_beta": 0},
    "base": {"frames": 1, "fps": 0, "vision_heads": 1},
    "sides": {"side_dim": 1, "hidden_dim": 1, "side_hidden_dim": 1, "heads": 1, "num_layers": 1},
    "lora": {"r": 0, "alpha": 1, "dropout": 0},
    "data": {"max_length": 1},
}
"""The smallest value of a setting, by section."""


@dataclass(frozen=True)
class BaseConfig:
    """The frozen video language model."""

    name: str = "llava_onevision"
    """Plugin in pave/models/bases."""
    path: str = "lmms-lab/llava-onevision-qwen2-0.5b-ov"
    """Folder or hub name; `asset:NAME` is a folder that ships with pave."""
    frames: int = 32
    """T, key frames a video, sampled uniformly."""
    fps: float = 0.0
    """Key frames a second, `frames` at most, so that short videos have fewer; 0: always `frames`."""
    frame_sampling: Literal["uniform", "native"] = "uniform"
    """Which key frames: evenly spaced, or by the base's own published rule, whatever `frames` and `fps` say."""
    newline: Literal["grid", "frame", "one_token", "no_token"] = "grid"
    """Where the learned newline vector stands among the visual tokens."""
    pool: Literal["bilinear", "average", "max"] | None = None
    """Pooling of the tower's grid; None takes the base's own."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Of the frozen weights."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Kernel of the tower and the LLM."""
    vision_heads: int | None = None
    """Attention heads of the tower, where neither files nor width tell."""
    quantize: Literal["none", "int8", "nf4"] = "none"
    """Frozen weights of the LLM in 8 or 4 bits (bitsandbytes), to train on a small GPU."""
    trainable: list[str] = field(default_factory=list)
    """Parts of the base that learn too: tower, projector, llm; for recipes of whole models."""
    init_from: str = ""
    """Trained folder whose base is trained further."""


@dataclass(frozen=True)
class PatchConfig:
    """One side-channel and its patch; the defaults are the official recipe."""

    side: str = ""
    """Plugin in pave/sides; empty: as this entry is named. Two patches may read the same side-channel."""
    side_dim: int = 1024
    """C, width of the side tokens."""
    hidden_dim: int = 512
    """H, inner width."""
    side_hidden_dim: int = 512
    """Width of the mapped side tokens."""
    heads: int = 4
    """Attention heads."""
    num_layers: int = 2
    """Cross-attention layers; the official recipe has 3 for Music-AVQA."""
    rope: bool = False
    """3D rotary embedding; on only in the official 0.5B enhanced-video patch."""
    conv_blocks: list[int] = field(default_factory=list)
    """Blocks of each stage of a convolutional input map; empty: a linear map."""
    conv_strides: list[int] = field(default_factory=list)
    """Spatial stride of each stage."""
    conv_scales: list[int] = field(default_factory=list)
    """Factor on the width at each stage."""
    queries: list[int] = field(default_factory=list)
    """[frames, tokens] of learnable queries; empty: the video's own tokens."""
    value_projection: Literal["shared", "separate"] = "shared"
    """Which projection makes the values; `shared` is the official one: keys and values by one map."""
    neighborhood: Literal["chunks", "centered", "seconds", "global"] = "chunks"
    """N(k): which steps a frame sees."""
    window_reach: float = 0.0
    """Of the neighbourhood: steps (centered) or seconds to either side (seconds)."""
    kernel: Literal["sdpa", "flash"] = "sdpa"
    """Attention kernel of the patch."""
    features: str = ""
    """Folder with this side's feature files, inside the data root unless absolute."""
    encoder: str = ""
    """Weights of the side's encoder, for features that are made on the spot."""
    encoder_options: list[str] = field(default_factory=list)
    """The `key=value` options that the features were extracted with."""
    init_from: str = ""
    """Trained folder that this patch starts from: its patch of the same name, or the only one."""
    trainable: bool = True
    """Off keeps the patch as it starts."""
    weight: float = 1.0
    """Factor on what the patch adds; 0 switches it off."""

    def check(self, name: str) -> None:
        """Raises UserError where settings do not fit together; `name` is that of this entry, such as sides.audio."""
        head_dim, remainder = divmod(self.hidden_dim, self.heads)
        if remainder:
            raise UserError(f"{name}.heads={self.heads}: expected a divisor of {name}.hidden_dim={self.hidden_dim}")
        if self.rope and head_dim != ROPE_HEAD_DIM:
            expected = f"heads of {ROPE_HEAD_DIM} channels; set {name}.hidden_dim to {ROPE_HEAD_DIM} x {name}.heads"
            raise UserError(f"{name}.rope=true: heads of {head_dim} channels, expected {expected}")

        if self.queries and (len(self.queries) != 2 or min(self.queries) < 1):
            raise UserError(f"{name}.queries={list(self.queries)}: expected [frames, tokens], or [] for none")
        # Strides alone are for an official folder, whose tensors tell the blocks and the scales.
        stages = [len(self.conv_blocks), len(self.conv_strides), len(self.conv_scales)]
        if len(set(stages)) > 1 and (self.conv_blocks or self.conv_scales):
            found = "{} conv_blocks, {} conv_strides and {} conv_scales".format(*stages)
            raise UserError(f"{name}: {found}; expected one of each for every stage")

        # With a smaller reach no frame would see any step, and the patch would add nothing.
        smallest = {"centered": 1.0, "seconds": math.nextafter(0, 1)}.get(self.neighborhood, 0.0)
        if not smallest <= self.window_reach < math.inf:
            expected = "a number of steps, 1 at least" if self.neighborhood == "centered" else "seconds, more than 0"
            found = f"{name}.window_reach={self.window_reach:g} with {name}.neighborhood={self.neighborhood}"
            raise UserError(f"{found}: expected {expected}")


@dataclass(frozen=True)
class LoraConfig:
    """LoRA on every projection of the LLM's layers."""

    r: int = 64
    """Rank; 0 trains the patch alone."""
    alpha: int = 16
    """Scale is alpha / r."""
    dropout: float = 0.05
    """On the input of the adapter."""
    init_from: str = ""
    """Trained folder whose LoRA is trained further."""
    trainable: bool = True
    """Off keeps LoRA as it starts."""


@dataclass(frozen=True)
class TaskConfig:
    """One task of a joint training."""

    task: str = ""
    """Plugin in pave/tasks; empty: as this entry is named."""
    root: str = ""
    """Folder of the data set; empty: data.root."""
    sides: list[str] | None = None
    """The patches it feeds, by name; None: all of them."""
    weight: float = 1.0
    """Factor on its share of an epoch."""


@dataclass(frozen=True)
class DataConfig:
    """Where questions, videos and features are."""

    task: str = "sideworld"
    """Plugin in pave/tasks."""
    root: str = "data"
    """Folder of the data set."""
    train_split: str = "train"
    """Questions to learn from."""
    eval_split: str = "test"
    """Questions to answer."""
    labels: Literal["answers", "official"] = "answers"
    """Supervised tokens: the answers, or all that the official code has; for PPLLaVA what its text tower reads."""
    max_length: int = 32768
    """Longest sequence after the visual tokens are in; the end is cut."""
    sides: list[str] | None = None
    """The patches that this data feeds, by name; None: all of them."""
    mixture: dict[str, TaskConfig] = field(default_factory=dict)
    """Tasks to learn jointly, instead of `task`, `root` and `sides`."""
    video_tokens: str = ""
    """Folder of `pave extract video`, inside the data root unless absolute: no video is decoded or looked at again."""
    missing: Literal["error", "absent"] = "error"
    """A question without a feature file stops the run, or does without that side-channel; how many is said."""
    temperature: float = 1.0
    """T: a task of n questions has a share of weight * n^(1/T); 1 is by size, large is equal shares."""


@dataclass(frozen=True)
class Config:
    """One run. `train` holds transformers.TrainingArguments under their own names."""

    base: BaseConfig = field(default_factory=BaseConfig)
    sides: dict[str, PatchConfig] = field(default_factory=dict)
    """Patches by name: that of their plugin in pave/sides, or any other beside `side`."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    data: DataConfig = field(default_factory=DataConfig)
    patch_lr: float | None = None
    """Learning rate of the patches; None takes the one of LoRA, train.learning_rate."""
    distill_from: str = ""
    """LanguageBind video tower whose features trained parts of the base learn; for Video-Panda's first stages."""
    dpo_beta: float = 0.0
    """Above 0: learns which of two answers is better, by direct preference optimisation, instead of the answer."""
    train: dict[str, Any] = field(default_factory=dict)
    """Overrides of the official training recipe (pave/training/recipe.py) and any other TrainingArguments."""

    def __post_init__(self) -> None:
        """Raises UserError with the full name of a setting whose value cannot be used."""
        settings.check_minima("", vars(self), MINIMA[""])
        settings.check_minima("base.", vars(self.base), MINIMA["base"])
        settings.check_minima("lora.", vars(self.lora), MINIMA["lora"])
        settings.check_minima("data.", vars(self.data), MINIMA["data"])
        for name, side in self.sides.items():
            settings.check_minima(f"sides.{name}.", vars(side), MINIMA["sides"])
            side.check(f"sides.{name}")

        if self.lora.dropout >= 1:
            raise UserError(f"lora.dropout={self.lora.dropout}: expected a share below 1")
        weights = {f"data.mixture.{name}.weight": task.weight for name, task in self.data.mixture.items()}
        for name, value in {"data.temperature": self.data.temperature, **weights}.items():
            if not 0 < value < math.inf:
                raise UserError(f"{name}={value}: expected a number above 0")


RENAMED = settings.Renames(
    keys={
        "": {"teacher": "distill_from"},
        "base": {"choice": "frame_sampling", "learn": "trainable", "init": "init_from"},
        "sides": {
            "dim": "side_dim",
            "width": "hidden_dim",
            "side_width": "side_hidden_dim",
            "depth": "num_layers",
            "values": "value_projection",
            "reach": "window_reach",
            "init": "init_from",
            "train": "trainable",
        },
        "lora": {"init": "init_from", "train": "trainable"},
        "data": {"mask": "labels", "mix": "mixture"},
    },
    values={
        "frame_sampling": {"even": "uniform", "own": "native"},
        "value_projection": {"key": "shared", "own": "separate"},
        "labels": {"release": "official"},
    },
)
"""Settings and values of version 0.1. Folders of that version are read through this table."""


def load(path: Path | str, overrides: Sequence[str] = (), is_stored: bool = False) -> Config:
    """Read a config from YAML, with `key=value` overrides.

    `is_stored` is for a file that pave wrote: settings of version 0.1 are read under their present names, and `${...}`
    is text, since the folder may be a stranger's. Raises UserError with the nearest or present name of a setting.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such config; the shipped ones are in configs/")

    values = settings.read_yaml(path, interpolate=not is_stored)
    if is_stored:
        values = settings.rename_old_settings(values, RENAMED)
    layers = [settings.Layer(str(path), values), *settings.parse_overrides(overrides)]
    return settings.merge(Config, layers, RENAMED)


def from_overrides(overrides: Sequence[str]) -> Config:
    """The defaults with `key=value` overrides on top."""
    return settings.merge(Config, settings.parse_overrides(overrides), RENAMED)


def options(schema: type[T], overrides: Sequence[str]) -> T:
    """A frozen dataclass of plain values with `key=value` overrides. Raises UserError with the nearest valid name.

    `${...}` is text: the overrides may come from a stored config.
    """
    return settings.merge(schema, settings.parse_overrides(overrides, literal=True))


def dump(config: Config) -> str:
    """The resolved config as YAML that `load` reads back."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.structured(config))


def named_plugins(config: Config) -> dict[str, tuple[str, str]]:
    """Kind and name of each plugin that a config names, by setting."""
    sides = {f"sides.{name}.side": ("sides", side.side or name) for name, side in config.sides.items()}
    mix = {f"data.mixture.{name}.task": ("tasks", task.task or name) for name, task in config.data.mixture.items()}
    return {"base.name": ("bases", config.base.name), **sides, "data.task": ("tasks", config.data.task), **mix}


def resolve(path: str) -> str:
    """Path of `asset:sideworld/NAME`, which ships in pave/sideworld/assets; other paths with ~ expanded."""
    if path.startswith("asset:"):
        package, _, name = path.removeprefix("asset:").partition("/")
        return str(Path(__file__).parent / package / "assets" / name)
    return os.path.expanduser(path)
