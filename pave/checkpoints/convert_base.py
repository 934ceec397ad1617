"""Convert a LLaVA-OneVision base from the lmms-lab layout to the transformers one and back, bit-exact."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

from pave.media import feature_files
from pave.models import state_dicts
from pave.models.bases import _llava_onevision_layouts
from pave.types import UserError
from pave.utils import hub_download
from pave.utils.atomic import atomic_folder
from pave.utils.json_files import read_json

Layout = Literal["lmms", "hf"]
LAYOUTS: Mapping[str, Layout] = {"llava": "lmms", "llava_onevision": "hf"}
"""Layout by `model_type` in config.json."""
SINGLE_FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
COPIED = (".json", ".txt", ".jinja", ".md")
"""Suffixes of tokenizer, generation settings and model card."""
_PUBLISHED_SETTINGS = {
    "mm_newline_position": "one_token",
    "mm_vision_tower": "google/siglip-so400m-patch14-384",
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "mm_use_im_start_end": False,
    "mm_use_im_patch_token": False,
    "use_mm_proj": True,
    "image_aspect_ratio": "anyres_max_9",
    "tokenizer_model_max_length": 32768,
    "tokenizer_padding_side": "right",
}
"""What the lmms-lab code reads in config.json and a transformers one does not say, as in the published bases."""


def main(path: str, out: Path, to: Layout, vision_heads: int | None = None) -> None:
    """Write the base of a folder or hub name to a new folder `out` in the layout `to`.

    The old config.json is kept as config.LAYOUT.json, and used when the base is converted back. Files of the
    transformers processor are not made. Raises UserError naming the first missing, extra or misshapen tensor.
    """
    source = hub_download.find_folder(
        path, "a LLaVA-OneVision base", [f"*{suffix}" for suffix in (".safetensors", *COPIED)]
    )
    raw = _read_config(source)
    layout = LAYOUTS[raw["model_type"]]
    if layout == to:
        raise UserError(f"{source}: is in the {to} layout already; choose the other one")
    if out.exists():
        raise UserError(f"{out}: exists already; give a new folder")

    shapes = _read_shapes(source)
    if layout == "hf":
        config = LlavaOnevisionConfig.from_pretrained(source)
    else:
        config = _llava_onevision_layouts.read_lmms_config(source, raw, vision_heads)
    to_lmms: Callable[[str], str] = _llava_onevision_layouts.lmms_name if layout == "hf" else str
    to_target: Callable[[str], str] = _llava_onevision_layouts.hub_name if to == "hf" else str
    _check_tensors({to_lmms(name): x for names in shapes.values() for name, x in names.items()}, config, source)

    with atomic_folder(out) as temporary:
        # One file at a time: all weights together may not fit into memory.
        file_of: dict[str, str] = {}
        for file in shapes:
            tensors = feature_files.read_safetensors(source / file).state
            renamed = {to_target(to_lmms(name)): x for name, x in tensors.items()}
            save_file(renamed, temporary / file, {"format": "pt"})
            file_of |= dict.fromkeys(renamed, file)
        if (source / INDEX).is_file():
            index = {**_read_index(source), "weight_map": file_of}
            (temporary / INDEX).write_text(json.dumps(index, indent=1))

        previous_config = f"config.{to}.json"
        for other in source.iterdir():
            if other.suffix in COPIED and other.name not in ("config.json", previous_config, INDEX):
                shutil.copy(other, temporary)
        shutil.copy(source / "config.json", temporary / f"config.{layout}.json")
        if (source / previous_config).is_file():
            shutil.copy(source / previous_config, temporary / "config.json")
        else:
            settings = _hf_settings(config, raw) if to == "hf" else _lmms_settings(config)
            (temporary / "config.json").write_text(json.dumps(settings, indent=1))


def _read_config(source: Path) -> dict[str, Any]:
    file = source / "config.json"
    raw = read_json(file, "the settings of a LLaVA-OneVision base")
    if raw.get("model_type") not in LAYOUTS:
        raise UserError(f"{file}: model_type is {raw.get('model_type')!r}; expected one of {', '.join(LAYOUTS)}")
    return raw


def _read_index(source: Path) -> dict[str, Any]:
    return read_json(source / INDEX, "which file holds which tensor; download the base again", ["weight_map"])


def _read_shapes(source: Path) -> dict[str, dict[str, tuple[int, ...]]]:
    """File -> tensor -> shape, of all files that the index names, or of the only one."""
    files = [SINGLE_FILE]
    if (source / INDEX).is_file():
        files = sorted(set(_read_index(source)["weight_map"].values()))

    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for file in files:
        if not (source / file).is_file():
            raise UserError(f"{source / file}: no such file; download the base again")
        try:
            with safe_open(source / file, "pt") as tensors:
                names = tensors.keys()
                shapes[file] = {name: tuple(tensors.get_slice(name).get_shape()) for name in names}
        except SafetensorError as error:
            raise UserError(
                f"{source / file}: not a whole safetensors file: {error}; download the base again"
            ) from error
    return shapes


def _check_tensors(actual: Mapping[str, tuple[int, ...]], config: LlavaOnevisionConfig, source: Path) -> None:
    """All tensors of the model, and no others; a tied head may be in the files or not. Raises UserError."""
    with torch.device("meta"):
        state = LlavaOnevisionForConditionalGeneration(config).state_dict()
    expected = {_llava_onevision_layouts.lmms_name(name): tuple(x.shape) for name, x in state.items()}
    if _is_tied(config) and "lm_head.weight" not in actual:
        del expected["lm_head.weight"]
    state_dicts.check_same(expected, actual, source)


def _is_tied(config: LlavaOnevisionConfig) -> bool:
    return config.tie_word_embeddings or config.text_config.tie_word_embeddings


def _hf_settings(config: LlavaOnevisionConfig, raw: Mapping[str, Any]) -> dict[str, object]:
    """config.json of the transformers layout; `rope_theta` stands in two places, for version 4 and for 5."""
    settings = config.to_diff_dict()
    settings["architectures"] = [LlavaOnevisionForConditionalGeneration.__name__]
    settings["text_config"]["rope_theta"] = config.text_config.rope_parameters["rope_theta"]
    settings |= {key: raw[key] for key in ("torch_dtype", "image_grid_pinpoints") if key in raw}
    if "image_token_index" in raw:
        settings["image_token_index"] = raw["image_token_index"]
        settings["video_token_index"] = raw["image_token_index"] + 1
    return settings


def _lmms_settings(config: LlavaOnevisionConfig) -> dict[str, object]:
    """config.json of the lmms-lab layout."""
    text, tower = config.text_config.to_dict(), config.vision_config.to_dict()
    shapes = {key: text[key] for key in _llava_onevision_layouts.TEXT_KEYS if text.get(key) is not None}
    shapes["tie_word_embeddings"] = _is_tied(config)
    shapes["rope_theta"] = config.text_config.rope_parameters["rope_theta"]
    vision = {key: tower[key] for key in _llava_onevision_layouts.VISION_KEYS}

    return {
        **_llava_onevision_layouts.lmms_config_json(shapes, vision),
        **_PUBLISHED_SETTINGS,
        "mm_hidden_size": vision["hidden_size"],
        "image_token_index": config.image_token_index,
        "image_grid_pinpoints": config.image_grid_pinpoints,
        "torch_dtype": str(config.dtype or torch.bfloat16).removeprefix("torch."),
    }
