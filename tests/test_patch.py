"""The patch against the official module: outputs, inner values, gradients, sizes (tests/golden/module/patch)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import GOLDEN, read_json
from safetensors.torch import load_file
from torch.testing import assert_close

from pave.checkpoint import official_patch_name, rename_patch
from pave.nn.patch import ConvShape, Patch

FOLDER = GOLDEN / "module/patch"
CASES = sorted(p.stem for p in FOLDER.glob("[a-i]*.json") if (FOLDER / p.name).exists())


def build(ctor: dict[str, Any], dtype: torch.dtype = torch.float32) -> Patch:
    """A patch from the official constructor's arguments."""
    conv = None
    if ctor["fast_input_mapping_type"] == "conv":
        conv = ConvShape(ctor["number_of_block_each_layer"], ctor["sptial_stride"], ctor["dim_scaling"])
    learnable = ctor.get("query_type") == "learnable"
    return Patch(
        ctor["input_dim"],
        ctor["query_input_dim"],
        ctor["output_dim"],
        width=ctor["cross_attn_hidden_dim"],
        side_width=ctor["embed_dim"] or 4 * ctor["input_dim"],
        heads=ctor["num_cross_attn_head"],
        depth=ctor["num_cross_attn_layer"],
        rope=ctor.get("use_3d_rope", True),
        conv=conv,
        queries=(ctor["chunks_number"], ctor["number_of_query"]) if learnable else None,
        out_mlp=ctor["use_output_mlp"],
        out_norm=ctor["use_output_norm"],
        dropout=ctor.get("dropout_rate", 0.0),
    ).to(dtype)


def run_case(name: str, dtype: torch.dtype) -> tuple[Patch, dict[str, Any], dict[str, torch.Tensor], torch.Tensor]:
    spec = read_json(FOLDER / f"{name}.json")
    data = load_file(FOLDER / f"{name}.safetensors")
    patch = build(spec["ctor"], dtype).eval()
    weights = load_file(GOLDEN / "module" / spec["weights"])
    patch.load_state_dict(rename_patch(patch, {k: v.to(dtype) for k, v in weights.items()}))
    query = torch.stack([data[f"slow_feats/{i}"] for i in range(len(data["x"]))]).to(dtype).requires_grad_()
    x = data["x"].to(dtype).requires_grad_()
    data["query leaf"], data["x leaf"] = query, x
    out = patch(query, x, spec["forward"]["frame_num"], stretch_to=spec["forward"]["chunk_num"])
    return patch, spec, data, out.flatten(1, 2)


@pytest.mark.parametrize("name", CASES)
def test_equals_the_official_module(name: str) -> None:
    patch, spec, data, out = run_case(name, torch.float32)
    tolerance = spec["tolerance"]["output"]
    assert_close(out, data["output"], atol=tolerance["atol"], rtol=tolerance.get("rtol", 0))
    if "grad_seed_tensor" not in data:
        return
    (out * data["grad_seed_tensor"]).sum().backward()
    leaves = {"x": data["x leaf"], "slow_feats/0": data["query leaf"][0]}
    grads = {f"param/{official_patch_name(n)}": p.grad for n, p in patch.named_parameters()}
    grads["x"], query_grad = leaves["x"].grad, data["query leaf"].grad
    grads["slow_feats/0"] = query_grad[0]
    for key in (k for k in data if k.startswith("grad/")):
        got, want = grads[key.removeprefix("grad/")], data[key]
        assert (got - want).abs().max() <= 2e-5 * want.abs().max() + 1e-9, key
    unused = {official_patch_name(n) for n, p in patch.named_parameters() if p.grad is None}
    assert unused == set(spec["grad"]["params_without_grad"])


@pytest.mark.parametrize("name", CASES)
def test_equals_the_official_module_in_float64(name: str) -> None:
    _, spec, data, out = run_case(name, torch.float64)
    assert_close(out, data["output_f64"], atol=1e-6 if spec["ctor"]["use_3d_rope"] else 1e-9, rtol=0)
