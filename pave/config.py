"""The configuration of a run: frozen dataclasses, strict YAML, key=value overrides; dataclass < YAML < key=value."""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pave.plug import nearest
from pave.types import UserError

T = TypeVar("T")

# OmegaConf reads the annotations at run time, so optional fields are spelled Optional (Python 3.10).


@dataclass(frozen=True)
class BaseConfig:
    """The frozen video language model."""

    name: str = "llava_onevision"
    """Plugin in pave/bases."""
    path: str = "lmms-lab/llava-onevision-qwen2-0.5b-ov"
    """Folder or hub name; `asset:NAME` is a folder that ships with pave."""
    frames: int = 32
    """T, key frames a video, sampled uniformly."""
    fps: float = 0.0
    """Key frames a second, `frames` at most, so that short videos have fewer; 0: always `frames`."""
    choice: Literal["even", "own"] = "even"
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
    learn: list[str] = field(default_factory=list)
    """Parts of the base that learn too: tower, projector, llm; for recipes of whole models."""
    init: str = ""
    """Trained folder whose base is trained further."""


@dataclass(frozen=True)
class PatchConfig:
    """One side-channel and its patch; the defaults are the released recipe."""

    side: str = ""
    """Plugin in pave/sides; empty: as this entry is named. Two patches may read the same side-channel."""
    dim: int = 1024
    """C, width of the side tokens."""
    width: int = 512
    """H, inner width."""
    side_width: int = 512
    """Width of the mapped side tokens."""
    heads: int = 4
    """Attention heads."""
    depth: int = 2
    """Cross-attention layers; the release uses 3 for Music-AVQA."""
    rope: bool = False
    """3D rotary embedding; on only in the released 0.5B enhanced-video patch."""
    conv_blocks: list[int] = field(default_factory=list)
    """Blocks of each stage of a convolutional input map; empty: a linear map."""
    conv_strides: list[int] = field(default_factory=list)
    """Spatial stride of each stage."""
    conv_scales: list[int] = field(default_factory=list)
    """Factor on the width at each stage."""
    queries: list[int] = field(default_factory=list)
    """[frames, tokens] of learnable queries; empty: the video's own tokens."""
    values: Literal["key", "own"] = "key"
    """Which projection makes the values; `key` is the released one."""
    neighborhood: Literal["chunks", "centered", "seconds", "global"] = "chunks"
    """N(k): which steps a frame sees."""
    reach: float = 0.0
    """Of the neighbourhood: steps (centered) or seconds to either side (seconds)."""
    kernel: Literal["sdpa", "flash"] = "sdpa"
    """Attention kernel of the patch."""
    features: str = ""
    """Folder with this side's feature files, inside the data root unless absolute."""
    encoder: str = ""
    """Weights of the side's encoder, for features that are made on the spot."""
    encoder_options: list[str] = field(default_factory=list)
    """The `key=value` options that the features were extracted with."""
    init: str = ""
    """Trained folder that this patch starts from: its patch of the same name, or the only one."""
    train: bool = True
    """Off keeps the patch as it starts."""
    weight: float = 1.0
    """Factor on what the patch adds; 0 switches it off."""


@dataclass(frozen=True)
class LoraConfig:
    """LoRA on every projection of the LLM's layers."""

    r: int = 64
    """Rank; 0 trains the patch alone."""
    alpha: int = 16
    """Scale is alpha / r."""
    dropout: float = 0.05
    """On the input of the adapter."""
    init: str = ""
    """Trained folder whose LoRA is trained further."""
    train: bool = True
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
    mask: Literal["answers", "release"] = "answers"
    """Supervised tokens: the answers, or all that the released code did; for PPLLaVA what its text tower reads."""
    max_length: int = 32768
    """Longest sequence after the visual tokens are in; the end is cut."""
    sides: list[str] | None = None
    """The patches that this data feeds, by name; None: all of them."""
    mix: dict[str, TaskConfig] = field(default_factory=dict)
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
    teacher: str = ""
    """LanguageBind video tower that the learning parts of the base come to see like; for Video-Panda's first stages."""
    dpo_beta: float = 0.0
    """Above 0: learns which of two answers is better, by direct preference optimisation, instead of the answer."""
    train: dict[str, Any] = field(default_factory=dict)
    """Overrides of the published training recipe (pave/train.py) and any other TrainingArguments."""


def load(path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """A Config from YAML and `key=value` overrides. Raises UserError with the nearest valid name."""
    from omegaconf import OmegaConf
    from yaml import YAMLError

    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such config; the shipped ones are in configs/")
    try:
        given = OmegaConf.load(path)
    except YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    return _merge(Config, [(str(path), given), *_parsed(overrides)])


def from_overrides(overrides: Sequence[str]) -> Config:
    """The defaults with `key=value` overrides on top."""
    return _merge(Config, _parsed(overrides))


def options(schema: type[T], overrides: Sequence[str]) -> T:
    """A frozen dataclass of plain values with `key=value` overrides. Raises UserError with the nearest valid name."""
    return _merge(schema, _parsed(overrides))


def _parsed(overrides: Sequence[str]) -> list[tuple[str, Any]]:
    """Each override with its text, for messages."""
    from omegaconf import OmegaConf

    for override in overrides:
        if "=" not in override:
            raise UserError(f"'{override}': expected key=value, for example train.learning_rate=1e-4")
    return [(override, OmegaConf.from_dotlist([override])) for override in overrides]


def _merge(schema: type[T], layers: Sequence[tuple[str, Any]]) -> T:
    """Merge (origin, values) layers over the defaults of a dataclass, each checked against it."""
    from omegaconf import OmegaConf, ValidationError, read_write
    from omegaconf.errors import ConfigAttributeError, ConfigKeyError

    merged = OmegaConf.structured(schema)
    for origin, values in layers:
        try:
            merged = OmegaConf.merge(merged, values)
            if values.get("sides") == {}:
                # Merging takes no entry out; an empty table says that there are none.
                with read_write(merged):
                    merged.sides = {}
        except (ConfigKeyError, ConfigAttributeError) as error:
            known = [f.name for f in dataclasses.fields(error.object_type)]  # type: ignore[arg-type]
            raise UserError(f"{origin}: unknown key '{error.full_key}'; {nearest(str(error.key), known)}") from error
        except ValidationError as error:
            raise UserError(f"{origin}: {_explain(error)}") from error
    config = OmegaConf.to_object(merged)
    assert isinstance(config, schema)
    return config


def _explain(error: Any) -> str:
    """One line of an OmegaConf ValidationError: key, value, what was expected."""
    text = str(error).splitlines()[0]
    if error.object_type is not None and error.full_key and isinstance(error.value, str):
        hint = typing.get_type_hints(error.object_type).get(str(error.key))
        choices = [c for h in (hint, *typing.get_args(hint)) if typing.get_origin(h) is Literal for c in get_args(h)]
        if choices:
            return f"'{error.full_key}' cannot be '{error.value}'; {nearest(error.value, choices)}"
    return f"'{error.full_key}': {text}" if error.full_key else text


def dump(config: Config) -> str:
    """The resolved config as YAML that `load` reads back."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.structured(config))


def plugins(config: Config) -> dict[str, tuple[str, str]]:
    """Kind and name of each plugin that a config names, by setting."""
    sides = {f"sides.{name}.side": ("sides", side.side or name) for name, side in config.sides.items()}
    mix = {f"data.mix.{name}.task": ("tasks", task.task or name) for name, task in config.data.mix.items()}
    return {"base.name": ("bases", config.base.name), **sides, "data.task": ("tasks", config.data.task), **mix}


def resolve(path: str) -> str:
    """`asset:NAME` -> the folder or file inside the package; anything else as it is, with ~ expanded."""
    if path.startswith("asset:"):
        return str(Path(__file__).parent / "assets" / path.removeprefix("asset:"))
    return os.path.expanduser(path)
