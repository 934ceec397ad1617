"""The geometry of a patch as its official tensors tell it, and what they do not tell."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.paths import GOLDEN
from safetensors.torch import load_file

from pave.checkpoints import official_reader
from pave.config import PatchConfig
from pave.types import UserError

CONV = {"conv": ([1, 2, 1], [1, 1, 2], [1, 1, 2], 16), "conv2": ([1, 1, 2, 1], [1, 2, 1, 1], [1, 2, 1, 1], 12)}


@pytest.mark.parametrize("name", CONV)
def test_geometry_of_a_convolutional_input_map(name: str) -> None:
    state, file = load_file(GOLDEN / f"module/patch/weights_{name}.safetensors"), Path("file")
    blocks, strides, scales, width = CONV[name]
    actual = official_reader.infer_patch(state, PatchConfig(conv_strides=strides), file)
    assert (actual.conv_blocks, actual.conv_strides, actual.conv_scales) == (blocks, strides, scales)
    assert (actual.side_dim, actual.side_hidden_dim, actual.hidden_dim, actual.num_layers, actual.heads) == (
        4,
        width,
        64,
        1,
        4,
    )
    for wrong in ([], [1, 2]):
        with pytest.raises(UserError, match=r"strides no tensor tells; give sides.NAME.conv_strides"):
            official_reader.infer_patch(state, PatchConfig(conv_strides=wrong), file)
    # Without a shortcut every stride is 1.
    plain = {k: x for k, x in state.items() if "branch1" not in k}
    assert official_reader.infer_patch(plain, PatchConfig(), file).conv_strides == [1] * len(blocks)


def test_geometry_of_other_patches() -> None:
    weights = {
        n: load_file(GOLDEN / f"module/patch/weights_{n}.safetensors") for n in ("small", "l3", "rope1", "learn")
    }
    actual = {
        name: official_reader.infer_patch(state, PatchConfig(rope=name == "rope1"), Path())
        for name, state in weights.items()
    }
    assert [actual[n].num_layers for n in ("small", "l3", "rope1", "learn")] == [2, 3, 1, 1]
    assert (actual["small"].heads, actual["rope1"].heads, actual["rope1"].hidden_dim) == (4, 1, 128)
    assert (actual["small"].queries, actual["learn"].queries) == ([], [8, 9])
    settings = PatchConfig(heads=2, conv_blocks=[1, 1], conv_strides=[1, 1], conv_scales=[1, 1], features="here")
    linear = official_reader.infer_patch(weights["small"], settings, Path())
    assert (linear.heads, linear.conv_blocks, linear.conv_strides, linear.features) == (2, [], [], "here")
    with pytest.raises(UserError, match="3D rope needs heads of 128 channels, this patch is 64 wide"):
        official_reader.infer_patch(weights["small"], PatchConfig(rope=True), Path())
