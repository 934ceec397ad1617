"""`pave init`: make the folders where the training of PPLLaVA and Video-Panda themselves starts."""

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
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template*",
    "generation_config.json",
    "config.json",
)
"""Files beside the weights that the new folder gets, too."""
NEW_FILE = "model-start.safetensors"
INDEX = "model.safetensors.index.json"


def start_ppllava(llava: Path, clip: Path, out: Path, depth: int = 4, max_frames: int = 64) -> None:
    """Make the folder where PPLLaVA's training starts: llava-v1.6-vicuna-7b-hf and clip-vit-large-patch14-336.

    The branch over time starts as the last `depth` layers of CLIP and adds nothing over time; text positions are
    stretched. Raises UserError where a tensor is missing or `out` exists.
    """
    clip_state = _state_dict.select(clip, lambda name: name)
    sizes = _sizes(_state_dict.config(llava), _state_dict.config(clip), depth, max_frames)
    _, projector = encoder.build(sizes)
    from_clip = _projector_state(clip_state)
    own_layers = {name: x for name, x in projector.state_dict().items() if name.startswith("linear_")}
    _state_dict.check(clip, "CLIP-L with its text tower", {**from_clip, **own_layers}, projector.state_dict())

    state = {encoder.VISION_PREFIX + name: x for name, x in _time_branch_state(clip_state, sizes).items()}
    state |= {encoder.PROJECTOR_PREFIX + name: x for name, x in from_clip.items()}
    settings = {
        "pooling": "ppllava",
        "extend_clip": True,
        "pooling_kernel": list(VIDEO_WINDOW),
        "pooling_stride": list(VIDEO_WINDOW),
        "btadapter": depth > 0,
        "btadapter_depth": depth,
        "max_T": max_frames,
    }
    _write(llava, str, state, settings, out, clip)


def _time_branch_state(clip_state: Mapping[str, Tensor], sizes: Sizes) -> dict[str, Tensor]:
    """The branch over time of the vision tower: copies of CLIP's last layers, and attention that starts at zero."""
    state = {
        "btadapter_cls_token": torch.zeros(1, 1, sizes.width),
        "btadapter_time_embed.weight": torch.zeros(sizes.max_frames, sizes.width),
    }
    for i in range(sizes.depth):
        layer = f"vision_model.encoder.layers.{sizes.layers - sizes.depth + i}."
        state |= {f"btadapter_S_layers.{i}.{name}": x for name, x in _with_prefix(clip_state, layer).items()}
        over_time = TemporalAttention(sizes.width, sizes.heads).state_dict()
        state |= {f"btadapter_T_layers.{i}.{name}": x for name, x in over_time.items()}
    return state


def _projector_state(clip_state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the projector takes from CLIP: the text tower with stretched positions, and the map into a shared space."""
    text = {name: x for name, x in _with_prefix(clip_state, "text_model.").items() if "position" not in name}
    positions = stretch_positions(clip_state["text_model.embeddings.position_embedding.weight"])
    text |= {"embeddings.position_embedding": positions, "embeddings.position_embedding_res": positions}

    state = {f"clip_text_model.{name}": x for name, x in text.items()}
    for name in ("weight", "bias"):
        state[f"clip_visual_ln.{name}"] = clip_state[f"vision_model.post_layernorm.{name}"]
    for name in ("visual", "text"):
        state[f"clip_{name}_projection.weight"] = clip_state[f"{name}_projection.weight"]
    state["logit_scale"] = clip_state["logit_scale"]
    return state


def _with_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)}


def start_video_panda(eve: Path, out: Path) -> None:
    """Make the folder where Video-Panda's training starts: LLM and projector of EVE-7B-Pretrain, and what towers share.

    Raises UserError where it has no projector of this shape, or `out` exists.
    """
    settings = _state_dict.config(eve)
    eve_tower = _state_dict.select(eve, partial(_remove_prefix, "model.vision_tower."))
    width = len(eve_tower["class_embedding"]) if "class_embedding" in eve_tower else 1024

    state: dict[str, Tensor] = {}
    for name, x in video_panda_tower.Tower(width).state_dict().items():
        is_shared = name in eve_tower and eve_tower[name].shape == x.shape
        state[f"model.video_tower.{name}"] = eve_tower[name] if is_shared else x
    settings = {
        "model_type": "videopanda",
        "video_hidden_size": width,
        "image_size": settings.get("image_size", 448),
        "mm_use_im_start_end": False,
    }
    _write(eve, _rename_eve, state, settings, out)


def _rename_eve(name: str) -> str | None:
    if name.startswith(("model.vision_tower", "model.image_teacher")):
        return None
    return name.replace("model.mm_projector.", "model.video_projector.")


def _remove_prefix(prefix: str, name: str) -> str | None:
    return name.removeprefix(prefix) if name.startswith(prefix) else None


def _sizes(llava: Mapping[str, Any], clip: Mapping[str, Any], depth: int, max_frames: int) -> Sizes:
    """Sizes by both config.json; what they leave out is as in the published models."""
    defaults, vision, text = Sizes(), clip.get("vision_config", {}), clip.get("text_config", {})
    patch = vision.get("patch_size", defaults.patch)

    return defaults._replace(
        width=vision.get("hidden_size", defaults.width),
        inner=vision.get("intermediate_size", defaults.inner),
        layers=vision.get("num_hidden_layers", defaults.layers),
        heads=vision.get("num_attention_heads", defaults.heads),
        patch=patch,
        edge=vision.get("image_size", 336) // patch,
        depth=depth,
        max_frames=max_frames,
        vocabulary=text.get("vocab_size", defaults.vocabulary),
        text_width=text.get("hidden_size", defaults.text_width),
        text_inner=text.get("intermediate_size", defaults.text_inner),
        text_layers=text.get("num_hidden_layers", defaults.text_layers),
        text_heads=text.get("num_attention_heads", defaults.text_heads),
        shared=clip.get("projection_dim", defaults.shared),
        out=llava.get("text_config", {}).get("hidden_size", defaults.out),
    )


def _write(
    source: Path,
    rename: Callable[[str], str | None],
    new_state: Mapping[str, Tensor],
    new_settings: Mapping[str, object],
    out: Path,
    clip: Path | None = None,
) -> None:
    """Write the tensors of a folder, renamed or left out, and new ones; CLIP's tokenizer into a folder inside."""
    if out.exists():
        raise UserError(f"{out}: exists already; give a new folder")

    with atomic_folder(out) as folder:
        # Part by part: all weights together may not fit into memory.
        file_of = dict.fromkeys(new_state, NEW_FILE)
        dtype = torch.float32
        for number, part in enumerate(_state_dict.parts(source, rename), start=1):
            dtype = next(iter(part.values())).dtype
            file = f"model-{number:05d}.safetensors"
            save_file({name: x.contiguous() for name, x in part.items()}, folder / file, {"format": "pt"})
            file_of |= dict.fromkeys(part, file)
        new_state = {name: x.to(dtype).contiguous().clone() for name, x in new_state.items()}
        save_file(new_state, folder / NEW_FILE, {"format": "pt"})
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": file_of}, indent=1))

        _copy_other_files(source, folder)
        settings = {**_state_dict.config(source), **new_settings}
        (folder / "config.json").write_text(json.dumps(settings, indent=1))
        if clip:
            (folder / "clip").mkdir()
            _copy_other_files(clip, folder / "clip")


def _copy_other_files(source: Path, out: Path) -> None:
    for pattern in COPIED:
        for file in source.glob(pattern):
            shutil.copy(file, out)
