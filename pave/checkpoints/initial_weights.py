"""The folders from which PPLLaVA's and Video-Panda's own training starts, made of the models that they were made of."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from pave.models.encoders import _state_dict, video_panda_tower
from pave.models.encoders import ppllava_projector as encoder
from pave.models.encoders.ppllava_clip import TemporalAttention, stretch_positions
from pave.models.encoders.ppllava_projector import VIDEO_WINDOW, Sizes
from pave.types import UserError
from pave.utils.atomic import atomic_folder

COPIED = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "chat_template*"),
    *("generation_config.json", "config.json"),
)
"""What lies beside weights."""
NEW = "model-start.safetensors"
INDEX = "model.safetensors.index.json"


def ppllava(llava: Path, clip: Path, out: Path, depth: int = 4, moments: int = 64) -> None:
    """llava-hf/llava-v1.6-vicuna-7b-hf and openai/clip-vit-large-patch14-336 -> where PPLLaVA's training starts.

    The branch over time starts as the last `depth` layers of CLIP and adds nothing over time; text positions are
    stretched. Raises UserError where a tensor is missing or `out` exists.
    """
    raw = _state_dict.config(llava)
    seen = _state_dict.select(clip, lambda name: name)
    sizes = _sizes(raw, _state_dict.config(clip), depth, moments)
    _, projector = encoder.build(sizes)
    fresh = {"btadapter_cls_token": torch.zeros(1, 1, sizes.width)}
    fresh["btadapter_time_embed.weight"] = torch.zeros(moments, sizes.width)
    for i in range(depth):
        layer = f"vision_model.encoder.layers.{sizes.layers - depth + i}."
        found = {n.removeprefix(layer): x for n, x in seen.items() if n.startswith(layer)}
        fresh |= {f"btadapter_S_layers.{i}.{name}": x for name, x in found.items()}
        over_time = TemporalAttention(sizes.width, sizes.heads).state_dict()
        fresh |= {f"btadapter_T_layers.{i}.{name}": x for name, x in over_time.items()}
    state = {encoder.VISION_PREFIX + name: x for name, x in fresh.items()}
    table = seen["text_model.embeddings.position_embedding.weight"]
    words = {n.removeprefix("text_model."): x for n, x in seen.items() if n.startswith("text_model.")}
    words = {n: x for n, x in words.items() if "position" not in n}
    words |= {f"embeddings.position_embedding{which}": stretch_positions(table) for which in ("", "_res")}
    taken = {f"clip_text_model.{name}": x for name, x in words.items()}
    taken |= {f"clip_visual_ln.{x}": seen[f"vision_model.post_layernorm.{x}"] for x in ("weight", "bias")}
    taken |= {f"clip_{which}_projection.weight": seen[f"{which}_projection.weight"] for which in ("visual", "text")}
    taken["logit_scale"] = seen["logit_scale"]
    linear = {n: x for n, x in projector.state_dict().items() if n.startswith("linear_")}
    _state_dict.check(clip, "CLIP-L with its text tower", {**taken, **linear}, projector.state_dict())
    state |= {encoder.PROJECTOR_PREFIX + name: x for name, x in taken.items()}
    told = {
        "pooling": "ppllava",
        "extend_clip": True,
        "pooling_kernel": list(VIDEO_WINDOW),
        "pooling_stride": list(VIDEO_WINDOW),
    }
    told |= {"btadapter": depth > 0, "btadapter_depth": depth, "max_T": moments}
    _write(llava, str, state, told, out, clip)


def video_panda_start(eve: Path, out: Path) -> None:
    """EVE-7B-Pretrain -> where Video-Panda's training starts: its LLM, its projector, and what the towers share.

    Raises UserError where it has no projector of this shape, or `out` exists.
    """
    raw = _state_dict.config(eve)
    known = _state_dict.select(eve, partial(_after, "model.vision_tower."))
    width = len(known["class_embedding"]) if "class_embedding" in known else 1024
    tower = video_panda_tower.Tower(width).state_dict()
    shared = {n: x for n, x in known.items() if n in tower and tower[n].shape == x.shape}
    state = {f"model.video_tower.{name}": shared.get(name, x) for name, x in tower.items()}
    told = {"model_type": "videopanda", "video_hidden_size": width, "image_size": raw.get("image_size", 448)}
    _write(eve, _eve_name, state, {**told, "mm_use_im_start_end": False}, out)


def _eve_name(name: str) -> str | None:
    if name.startswith(("model.vision_tower", "model.image_teacher")):
        return None
    return name.replace("model.mm_projector.", "model.video_projector.")


def _after(prefix: str, name: str) -> str | None:
    return name.removeprefix(prefix) if name.startswith(prefix) else None


def _sizes(raw: Mapping[str, Any], clip: Mapping[str, Any], depth: int, moments: int) -> Sizes:
    """As the config.json of both folders tell; what they leave out is as in the published models."""
    known, vision, text = Sizes(), clip.get("vision_config", {}), clip.get("text_config", {})
    patch = vision.get("patch_size", known.patch)
    return known._replace(
        width=vision.get("hidden_size", known.width),
        inner=vision.get("intermediate_size", known.inner),
        layers=vision.get("num_hidden_layers", known.layers),
        heads=vision.get("num_attention_heads", known.heads),
        patch=patch,
        edge=vision.get("image_size", 336) // patch,
        depth=depth,
        max_frames=moments,
        vocabulary=text.get("vocab_size", known.vocabulary),
        text_width=text.get("hidden_size", known.text_width),
        text_inner=text.get("intermediate_size", known.text_inner),
        text_layers=text.get("num_hidden_layers", known.text_layers),
        text_heads=text.get("num_attention_heads", known.text_heads),
        shared=clip.get("projection_dim", known.shared),
        out=raw.get("text_config", {}).get("hidden_size", known.out),
    )


def _write(
    source: Path,
    rename: Callable[[str], str | None],
    state: Mapping[str, Tensor],
    told: Mapping[str, Any],
    out: Path,
    clip: Path | None = None,
) -> None:
    """The tensors of a folder, some renamed or left out, and new ones, part by part; CLIP's tokenizer inside."""
    if out.exists():
        raise UserError(f"{out}: exists already; give a new folder")
    with atomic_folder(out) as folder:
        places = dict.fromkeys(state, NEW)
        kind = torch.float32
        for number, part in enumerate(_state_dict.parts(source, rename), start=1):
            kind = next(iter(part.values())).dtype
            file = f"model-{number:05d}.safetensors"
            save_file({name: x.contiguous() for name, x in part.items()}, folder / file, {"format": "pt"})
            places |= dict.fromkeys(part, file)
        halved = {name: x.to(kind).contiguous().clone() for name, x in state.items()}
        save_file(halved, folder / NEW, {"format": "pt"})
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}, indent=1))
        _copy(source, folder)
        (folder / "config.json").write_text(json.dumps({**_state_dict.config(source), **told}, indent=1))
        if clip:
            (folder / "clip").mkdir()
            _copy(clip, folder / "clip")


def _copy(source: Path, out: Path) -> None:
    for pattern in COPIED:
        for file in source.glob(pattern):
            shutil.copy(file, out)
