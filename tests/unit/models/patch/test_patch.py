"""The patch against the official module: outputs, inner values, gradients, sizes (tests/golden/module/patch)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers.golden_patch import build
from helpers.paths import GOLDEN, read_json
from safetensors.torch import load_file
from torch.testing import assert_close

from pave.checkpoints.official import patch_name, rename_patch
from pave.models.patch.patch import Patch

FOLDER = GOLDEN / "module/patch"
LAYOUTS = read_json(GOLDEN / "module/init/parameter_layouts.json")
CASES = sorted(p.stem for p in FOLDER.glob("[a-i]*.json") if (FOLDER / p.name).exists())


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
    grads = {f"param/{patch_name(n)}": p.grad for n, p in patch.named_parameters()}
    grads["x"], query_grad = leaves["x"].grad, data["query leaf"].grad
    grads["slow_feats/0"] = query_grad[0]
    for key in (k for k in data if k.startswith("grad/")):
        actual, expected = grads[key.removeprefix("grad/")], data[key]
        assert (actual - expected).abs().max() <= 2e-5 * expected.abs().max() + 1e-9, key
    unused = {patch_name(n) for n, p in patch.named_parameters() if p.grad is None}
    assert unused == set(spec["grad"]["params_without_grad"])


@pytest.mark.parametrize("name", CASES)
def test_equals_the_official_module_in_float64(name: str) -> None:
    _, spec, data, out = run_case(name, torch.float64)
    assert_close(out, data["output_f64"], atol=1e-6 if spec["ctor"]["use_3d_rope"] else 1e-9, rtol=0)


def draw(patch: Patch, spec: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Fill the patch's weights, and return query and x, by the rule in a production case's json."""
    draws = np.random.RandomState(spec["weight_seed"])
    for name, p in sorted((patch_name(n), p) for n, p in patch.named_parameters()):
        values = draws.standard_normal(p.numel()).reshape(p.shape)
        if p.dim() >= 2:
            values *= 0.8 / np.sqrt(np.prod(p.shape[1:]))
        elif name == "output_norm.weight" or name.endswith(".ffn.0.weight"):
            values = 1 + 0.25 * values
        else:
            values *= 0.2
        p.data.copy_(torch.from_numpy(values))
        assert p.double().sum().item() == pytest.approx(spec["param_sums"][name], abs=1e-4)
    draws = np.random.RandomState(spec["input_seed"])
    x, query = (
        torch.from_numpy(draws.standard_normal(np.prod(shape)).astype(np.float32)).view(shape)
        for shape in (spec["x_shape"], spec["slow_feats_shape"])
    )
    return query, x


@pytest.mark.parametrize("name", sorted(p.stem for p in FOLDER.glob("production_*.json")))
def test_production_sizes(name: str) -> None:
    spec, data = read_json(FOLDER / f"{name}.json"), load_file(FOLDER / f"{name}.safetensors")
    patch = build(spec["ctor"]).eval()
    query, x = draw(patch, spec)
    with torch.no_grad():
        out = patch(query, x, spec["forward"]["frame_num"], stretch_to=spec["forward"]["chunk_num"]).flatten(1, 2)
    assert list(out.shape) == spec["output_shape"]
    assert_close(out[:, data["row_index"]], data["output_rows"], atol=spec["tolerance"]["output_rows"]["atol"], rtol=0)
    assert out.mean().item() == pytest.approx(spec["output_mean"], abs=spec["tolerance"]["means"])
    assert out.abs().mean().item() == pytest.approx(spec["output_abs_mean"], abs=spec["tolerance"]["means"])


@pytest.mark.parametrize("name", LAYOUTS["configs"])
def test_parameters_of_every_official_config(name: str) -> None:
    config = LAYOUTS["configs"][name]
    patch = build(config["temporal_aggregator_config"])
    params = {patch_name(n): p.detach() for n, p in patch.named_parameters()}
    assert {n: list(p.shape) for n, p in params.items()} == LAYOUTS["layouts"][config["layout"]]
    assert len(params) == config["n_tensors"]
    assert sum(p.numel() for p in params.values()) == config["total_parameters"]
    unused = sum(p.numel() for n, p in params.items() if ".v_linear." in n)
    assert unused == config["never_used_parameters_v_linear"]
    assert {n for n, p in params.items() if (p == 0).all()} == set(config["zero_at_init"])
    assert {n for n, p in params.items() if (p == 1).all()} == set(config["one_at_init"])
    # Only what is used trains.
    assert {n for n, p in patch.named_parameters() if not p.requires_grad} == {
        n for n, _ in patch.named_parameters() if ".v." in n
    }


@pytest.mark.parametrize(("out_dim", "total"), [(896, 6_301_312), (3584, 9_061_888)])
def test_exo_sizes(out_dim: int, total: int) -> None:
    assert sum(p.numel() for p in Patch(1152, 1152, out_dim).parameters()) == total


@pytest.mark.parametrize("rope", [False, True])
def test_the_start_is_exactly_zero_and_only_the_output_norm_moves(rope: bool) -> None:
    patch = Patch(8, 12, 20, hidden_dim=128, heads=1, rope=rope)
    out = patch(torch.randn(2, 4, 9, 12), torch.randn(2, 7, 4, 8), [7, 2])
    assert torch.equal(out, torch.zeros(2, 4, 9, 20))
    (out * torch.randn_like(out)).sum().backward()
    moved = {n for n, p in patch.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"out_norm.weight", "out_norm.bias"}
    without = {n for n, p in patch.named_parameters() if p.grad is None}
    assert without == {f"layers.{i}.v.{what}" for i in range(2) for what in ("weight", "bias")}
