"""A made-up folder in the layout and sizes of each of the 15 released checkpoints is understood from its content."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from helpers.paths import GOLDEN, read_json
from torch import Tensor

from pave.checkpoints import build, official
from pave.config import BaseConfig, Config, LoraConfig, PatchConfig
from pave.models import lora
from pave.models.bases import _llava_onevision_layouts
from pave.models.patched_model import PatchedModel

LAYOUTS = read_json(GOLDEN / "module/init/parameter_layouts.json")["layouts"]
DEEP, SHALLOW = LAYOUTS["layout_5"], LAYOUTS["layout_1"]
"""Of the 7B base: 3 layers, 2 layers."""
WIDTHS = {"0.5b": 896, "7b": 3584}
LORA_SIZES = {"0.5b": 35_192_832, "7b": 161_480_704}


class Layout(NamedTuple):
    """What the published tables say."""

    size: str
    sides: tuple[str, ...]
    parameters: int
    """Of each patch."""
    dim: int = 1024
    depth: int = 2
    rope: bool = False
    kind: str = "pmv5"


RELEASES = {
    "pave_v5_1_3_lora_avsd_imagebind": Layout("0.5b", ("audio",), 6_235_776),
    "pave_5_1_3_lora_avsd_7B_imagebind": Layout("7b", ("audio",), 8_996_352),
    "pave_v5_1_3_lora_avsd_audio_and_dense_7B": Layout("7b", ("dense", "audio"), 8_996_352, kind="ssmv5"),
    "pave_v5_1_3_lora_avqa_imagebind": Layout("0.5b", ("audio",), 6_235_776),
    "pave_v5_1_3_lora_avqa_7B_imagebind": Layout("7b", ("audio",), 8_996_352),
    "pave_v5_1_3_lora_music_avqa_2epoch_imagebind_3layers": Layout("0.5b", ("audio",), 8_073_344, depth=3),
    "pave_v5_1_3_lora_music_avqa7B_2epoch_imagebind_3layers": Layout("7b", ("audio",), 10_833_920, depth=3),
    "pave_scanqa_v5_1_3_3d_lora": Layout("0.5b", ("scene3d",), 6_235_776),
    "pave_scanqa_v5_1_3_3d_lora_7B": Layout("7b", ("scene3d",), 8_996_352),
    "pave_sqa3d_v5_1_3_3d_lora_2epochs": Layout("0.5b", ("scene3d",), 6_235_776),
    "pave_sqa3d_v5_1_3_3d_lora_7B_2epoch": Layout("7b", ("scene3d",), 8_996_352),
    "pave_egoexo_v5_1_3_3d_lora_2epoch": Layout("0.5b", ("exo",), 6_301_312, dim=1152, kind="ssmv5"),
    "pave_egoexo_v5_1_3_3d_lora_7B_2epoch": Layout("7b", ("exo",), 9_061_888, dim=1152, kind="ssmv5"),
    "pave_v5_1_2_lora": Layout("0.5b", ("dense",), 6_235_776, rope=True),
    "pave_v5_1_3_lora_7B": Layout("7b", ("dense",), 8_996_352),
}


def patch_shapes(release: Layout) -> dict[str, list[int]]:
    """The recorded layout, with this base's width for the 7B's and this side's for 1024."""
    layout = {name: list(shape) for name, shape in (DEEP if release.depth == 3 else SHALLOW).items()}
    layout["input_mapping.weight"][1] = release.dim
    for name in ("output_mapping.2.weight", "output_mapping.2.bias", "output_norm.weight", "output_norm.bias"):
        layout[name][0] = WIDTHS[release.size]
    return layout


def lora_shapes(size: str) -> dict[str, list[int]]:
    """Rank 64 on the seven projections of every layer of the LLM."""
    text = _llava_onevision_layouts.PUBLISHED[f"lmms-lab/llava-onevision-qwen2-{size}-ov"][0]
    width, mlp = text["hidden_size"], text["intermediate_size"]
    narrow = width // text["num_attention_heads"] * text["num_key_value_heads"]
    linears = {f"self_attn.{name}_proj": (width, out) for name, out in zip("qkvo", (width, narrow, narrow, width))}
    linears |= {"mlp.gate_proj": (width, mlp), "mlp.up_proj": (width, mlp), "mlp.down_proj": (mlp, width)}
    shapes = {}
    for layer in range(text["num_hidden_layers"]):
        for name, (before, after) in linears.items():
            stem = f"base_model.model.model.layers.{layer}.{name}.lora_"
            shapes |= {f"{stem}A.weight": [64, before], f"{stem}B.weight": [after, 64]}
    return shapes


def write_hollow(shapes: dict[str, list[int]], file: Path) -> None:
    """A safetensors file of bfloat16 zeros that takes no room on the disk."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(file, "wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + end)


def make(release: Layout, folder: Path) -> Path:
    """Random patches; LoRA of zeros. Nothing in the folder's name tells anything."""
    prefixes = ("temporal_aggregator", "temporal_aggregator2")[: len(release.sides)]
    state: dict[str, Tensor] = {}
    for prefix in prefixes:
        for name, shape in patch_shapes(release).items():
            state[f"base_model.model.model.{prefix}.{name}"] = torch.randn(shape, dtype=torch.bfloat16)
    folder.mkdir()
    torch.save(state, folder / "non_lora_trainables.bin")
    settings = {"temporal_aggregator_type": release.kind, "feat_combine_method": "add", "mm_newline_position": "grid"}
    (folder / "config.json").write_text(json.dumps({"model_type": "pave_qwen2", **settings}))
    adapter = {"r": 64, "lora_alpha": 16, "lora_dropout": 0.05, "bias": "none", "peft_type": "LORA"}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    write_hollow(lora_shapes(release.size), folder / "adapter_model.safetensors")
    return folder


@cache
def skeleton(base: str) -> PatchedModel:
    """Base and LoRA as shapes, without patches."""
    return build.create(Config(base=BaseConfig(path=base), sides={}), weights=False)


@pytest.mark.parametrize("name", RELEASES)
def test_released_layout(name: str, tmp_path: Path) -> None:
    release = RELEASES[name]
    folder = make(release, tmp_path / "download")
    # Neither the sides' names nor rope stand in the weights or in config.json.
    settings = Config(sides={side: PatchConfig(rope=release.rope) for side in release.sides})
    content = official.read_official(folder, settings)
    assert content.config.base.path == f"lmms-lab/llava-onevision-qwen2-{release.size}-ov"
    assert content.config.lora == LoraConfig(64, 16, 0.05)
    assert tuple(content.config.sides) == release.sides
    for side in content.config.sides.values():
        assert side == PatchConfig(side_dim=release.dim, num_layers=release.depth, rope=release.rope)

    base = skeleton(content.config.base.path)
    dims = base.base.query_dim, base.base.embed_dim
    model = PatchedModel(base.base, {n: build.make_patch(s, *dims) for n, s in content.config.sides.items()})
    named = official.rename_tensors(model, content)
    model.patches.load_state_dict(named.patches)
    stored = torch.load(folder / "non_lora_trainables.bin", weights_only=True)
    for prefix, side in zip(("temporal_aggregator", "temporal_aggregator2"), release.sides):
        patch = model.patches[side]
        assert sum(p.numel() for p in patch.parameters()) == release.parameters
        weight = stored[f"base_model.model.model.{prefix}.cross_attn_layers.{release.depth - 1}.attn.k_linear.weight"]
        assert torch.equal(patch.layers[-1].k.weight, weight.float())
    assert sum(x.numel() for x in named.adapter.values()) == LORA_SIZES[release.size]
    assert named.adapter.keys() == lora.state(model.base.hf).keys()


def test_there_are_fifteen() -> None:
    assert len(RELEASES) == 15
