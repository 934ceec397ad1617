"""The configuration of a run: frozen dataclasses, strict YAML, key=value overrides; dataclass < YAML < key=value."""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pave.types import UserError
from pave.utils.registry import nearest

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
    """One side-channel and its patch; the defaults are the released recipe."""

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
    """Supervised tokens: the answers, or all that the released code did; for PPLLaVA what its text tower reads."""
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
    """LanguageBind video tower that the learning parts of the base come to see like; for Video-Panda's first stages."""
    dpo_beta: float = 0.0
    """Above 0: learns which of two answers is better, by direct preference optimisation, instead of the answer."""
    train: dict[str, Any] = field(default_factory=dict)
    """Overrides of the published training recipe (pave/training/train.py) and any other TrainingArguments."""


RENAMED: Mapping[str, Mapping[str, str]] = {
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
}
"""Settings of version 0.1 by section: their present names. Folders of that version are read through this table."""
RENAMED_VALUES: Mapping[str, Mapping[str, str]] = {
    "frame_sampling": {"even": "uniform", "own": "native"},
    "value_projection": {"key": "shared", "own": "separate"},
    "labels": {"release": "official"},
}
"""Values of version 0.1 by the present name of their setting."""


def load(path: Path | str, overrides: Sequence[str] = (), is_stored: bool = False) -> Config:
    """A Config from YAML and `key=value` overrides; `is_stored` reads what an older version wrote, too.

    Raises UserError with the nearest valid name, or with the present name of a setting of version 0.1.
    """
    from omegaconf import OmegaConf
    from yaml import YAMLError

    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such config; the shipped ones are in configs/")
    try:
        values = OmegaConf.load(path)
    except YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error

    if is_stored:
        values = OmegaConf.create(_upgrade(OmegaConf.to_container(values)))
    return _merge(Config, [(str(path), values), *_parsed(overrides)])


def _upgrade(values: Any) -> Any:
    """The settings of a folder that version 0.1 wrote, under their present names and values."""
    if not isinstance(values, dict):
        return values
    sides = values.get("sides") or {}
    tables = {"base": values.get("base"), "lora": values.get("lora"), "data": values.get("data")}
    upgraded = _renamed(values, "") | {
        section: _renamed(table, section) for section, table in tables.items() if isinstance(table, dict)
    }
    if isinstance(sides, dict) and sides:
        upgraded["sides"] = {
            name: _renamed(table, "sides") if isinstance(table, dict) else table for name, table in sides.items()
        }
    return upgraded


def _renamed(table: Mapping[str, Any], section: str) -> dict[str, Any]:
    """One section under present names."""
    renamed = {RENAMED[section].get(key, key): value for key, value in table.items()}
    return {
        key: RENAMED_VALUES.get(key, {}).get(value, value) if isinstance(value, str) else value
        for key, value in renamed.items()
    }


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
            raise UserError(f"{origin}: {_explain_key(error)}") from error
        except ValidationError as error:
            raise UserError(f"{origin}: {_explain(error)}") from error
    config = OmegaConf.to_object(merged)
    assert isinstance(config, schema)
    return config


def _explain_key(error: Any) -> str:
    """One line about a setting that there is not: its present name, or the nearest one."""
    section, _, _ = str(error.full_key).rpartition(".")
    present = RENAMED.get(section.partition(".")[0], {}).get(str(error.key))
    if present:
        return f"'{error.full_key}' is now '{section}{'.' if section else ''}{present}'"
    known = [f.name for f in dataclasses.fields(error.object_type)]
    return f"unknown key '{error.full_key}'; {nearest(str(error.key), known)}"


def _explain(error: Any) -> str:
    """One line of an OmegaConf ValidationError: key, value, what was expected."""
    text = str(error).splitlines()[0]
    if error.object_type is not None and error.full_key and isinstance(error.value, str):
        present = RENAMED_VALUES.get(str(error.key), {}).get(error.value)
        if present:
            return f"'{error.full_key}={error.value}' is now '{present}'"
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
    mix = {f"data.mixture.{name}.task": ("tasks", task.task or name) for name, task in config.data.mixture.items()}
    return {"base.name": ("bases", config.base.name), **sides, "data.task": ("tasks", config.data.task), **mix}


def resolve(path: str) -> str:
    """`asset:sideworld/NAME` -> what ships in pave/sideworld/assets; anything else as it is, with ~ expanded."""
    if path.startswith("asset:"):
        package, _, name = path.removeprefix("asset:").partition("/")
        return str(Path(__file__).parent / package / "assets" / name)
    return os.path.expanduser(path)
