"""The patch against a plain loop over samples, frames and heads, for every neighbourhood, kernel and kind of batch."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.testing import assert_close

from pave.models.patch import patch as patch_module
from pave.models.patch import rotary
from pave.models.patch.attention import folding_pays
from pave.models.patch.patch import ConvShape, Patch
from pave.types import UserError

FRAMES, TOKENS, QUERY_DIM, SIDE_DIM = 4, 4, 12, 8
STEPS = [21, 9, 3, 1]
SIDE_SECONDS = [0.5 * torch.arange(k) for k in STEPS]
FRAME_SECONDS = [torch.tensor([0.2, 1.0, 3.1, 40.0])] * len(STEPS)


def make(dtype: torch.dtype = torch.float64, **options: Any) -> Patch:
    """A small patch with random values everywhere, also in biases and norms."""
    torch.manual_seed(0)
    patch = Patch(SIDE_DIM, QUERY_DIM, 20, **{"hidden_dim": 64, "side_hidden_dim": 24, "heads": 2, **options})
    for p in patch.parameters():
        if p.dim() == 1:
            torch.nn.init.normal_(p)
    return patch.to(dtype)


def inputs(per_step: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    query = torch.randn(len(STEPS), FRAMES, TOKENS, QUERY_DIM, dtype=dtype)
    return query, torch.randn(len(STEPS), max(STEPS) + 3, per_step, SIDE_DIM, dtype=dtype)


def run(patch: Patch, query: Tensor, x: Tensor) -> Tensor:
    return patch(query, x, STEPS, seconds=SIDE_SECONDS, frame_seconds=FRAME_SECONDS)


def outcome(patch: Patch, query: Tensor, x: Tensor) -> dict[str, Tensor]:
    """The output, and the gradients of a fixed function of it."""
    patch.zero_grad(set_to_none=True)
    out = run(patch, query, x)
    (out * torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
    return {"out": out, **{n: p.grad for n, p in patch.named_parameters() if p.grad is not None}}


def seen(kind: str, sample: int, frame: int, positions: int, reach: float) -> list[int]:
    """The positions a frame sees, from the definition of its neighbourhood."""
    if kind == "chunks":
        base, extra = divmod(positions, FRAMES)
        sizes = [base + (i < extra) for i in range(FRAMES)]
        return list(range(sum(sizes[:frame]), sum(sizes[: frame + 1])))
    if kind == "centered":
        size = min(int(reach), positions)
        middle = (frame + 0.5) * positions / FRAMES
        start = min(range(positions - size + 1), key=lambda s: abs(s + size / 2 - middle))
        return list(range(start, start + size))
    if kind == "seconds":
        distance = (SIDE_SECONDS[sample] - FRAME_SECONDS[sample][frame]).abs()
        return (distance <= reach).nonzero()[:, 0].tolist()
    return list(range(positions))


def turned(x: Tensor, time: int, row: int, column: int) -> Tensor:
    """float[128] as 64 complex numbers (c, c + 64), each turned by its own angle."""
    place = torch.tensor([time] * 16 + [row] * 24 + [column] * 24)
    ladder = 1 / 10000 ** (torch.arange(0, 128, 2, dtype=torch.float32) / 128)
    angle = (place * ladder).double()
    z = torch.complex(x[:64], x[64:]) * torch.complex(angle.cos(), angle.sin())
    return torch.cat([z.real, z.imag])


def naive(patch: Patch, b: int, query: Tensor, x: Tensor) -> Tensor:
    """One sample in plain loops: query float[T,S,Q], x float[K,P,C] -> float[T,S,D]"""
    memory = patch.side_in(x)
    if patch.neighborhood in ("chunks", "centered") and len(x) < FRAMES:
        at = [j * (len(x) - 1) / (FRAMES - 1) for j in range(FRAMES)]
        memory = torch.stack([memory[int(a)] * (1 - a % 1) + memory[min(int(a) + 1, len(x) - 1)] * (a % 1) for a in at])
    tokens = patch.queries if patch.query_in is None else patch.query_in(query)
    stand = rotary.frame_times(FRAMES, torch.tensor([len(memory)]))[0].tolist()
    side_q, side_k = int(TOKENS**0.5), int(memory.shape[1] ** 0.5)
    grid = max(side_q, side_k)
    cells_q, cells_k = rotary.cell_centers(side_q, grid).tolist(), rotary.cell_centers(side_k, grid).tolist()
    for layer in patch.layers:
        update = torch.zeros_like(tokens)
        for t in range(FRAMES):
            window = seen(patch.neighborhood, b, t, len(memory), patch.window_reach)
            keys = [(j, p, *layer.k(memory[j, p]).chunk(layer.heads)) for j in window for p in range(memory.shape[1])]
            for s in range(TOKENS if keys else 0):
                out = []
                for h, q in enumerate(layer.q(tokens[t, s]).chunk(layer.heads)):
                    key = torch.stack([k[2 + h] for k in keys])
                    value = key
                    if layer.separate_values:
                        value = torch.stack([layer.v(memory[k[0], k[1]]).chunk(layer.heads)[h] for k in keys])
                    if patch.rope:
                        q = turned(q, stand[t], cells_q[s // side_q], cells_q[s % side_q])
                        places = [(k[0], cells_k[k[1] // side_k], cells_k[k[1] % side_k]) for k in keys]
                        key = torch.stack([turned(k, *place) for k, place in zip(key, places)])
                    out.append((key @ q / len(q) ** 0.5).softmax(0) @ value)
                update[t, s] = torch.cat(out)
        tokens = tokens + update
        tokens = tokens + layer.down(torch.nn.functional.gelu(layer.up(layer.norm(tokens))))
    return patch.out_norm(patch.out(tokens))


NEIGHBORHOODS = [("chunks", 0), ("centered", 5), ("seconds", 1.3), ("global", 0)]
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "separate values": {"value_projection": "separate"},
    "learnable queries": {"queries": (FRAMES, TOKENS)},
    "rope": {"rope": True, "hidden_dim": 128, "heads": 1},
}


@pytest.mark.parametrize("per_step", [1, 4], ids=["one token a step", "four"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("kind", "reach"), NEIGHBORHOODS)
def test_neighborhoods_in_closed_form(
    kind: str, reach: float, variant: str, per_step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patch_module, "folding_pays", lambda tokens, key: per_step == 1)
    patch = make(neighborhood=kind, window_reach=reach, **VARIANTS[variant])
    query, x = inputs(per_step)
    with torch.no_grad():
        expected = torch.stack([naive(patch, b, query[b], x[b, :steps]) for b, steps in enumerate(STEPS)])
    out = run(patch, query, x)
    assert_close(out, expected, atol=1e-6 if patch.rope else 1e-11, rtol=0)
    assert (run(patch.bfloat16(), query, x).double() - expected).abs().mean() < 0.03


@pytest.mark.parametrize(("kind", "reach"), NEIGHBORHOODS)
@pytest.mark.parametrize("per_step", [1, 4])
def test_portions_and_folding_change_nothing(
    kind: str, reach: float, per_step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch, (query, x) = make(neighborhood=kind, window_reach=reach), inputs(per_step)
    results = []
    for tokens, fold in ((10**9, False), (10**9, True), (1, True), (5 * TOKENS, False)):
        monkeypatch.setattr(patch_module, "CPU_CHUNK_TOKENS", tokens)
        monkeypatch.setattr(patch_module, "folding_pays", lambda tokens, key, fold=fold: fold)
        results.append(outcome(patch, query, x))
    for other in results[1:]:
        assert_close(other, results[0], atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(("kind", "reach"), NEIGHBORHOODS)
def test_a_ragged_batch_equals_its_samples_alone(kind: str, reach: float) -> None:
    patch, (query, x) = make(neighborhood=kind, window_reach=reach), inputs(4)
    batch = run(patch, query, x)
    for b, steps in enumerate(STEPS):
        clocks = {"seconds": SIDE_SECONDS[b : b + 1], "frame_seconds": FRAME_SECONDS[b : b + 1]}
        assert_close(patch(query[b : b + 1], x[b : b + 1, :steps], **clocks)[0], batch[b], atol=1e-11, rtol=0)


CONV = ConvShape((1, 2, 1), (1, 1, 2), (1, 2, 1))


@pytest.mark.parametrize("options", [{}, {"rope": True, "hidden_dim": 128, "heads": 1}, {"conv": CONV}], ids=str)
@pytest.mark.parametrize("junk", [1e4, float("inf"), float("nan")])
def test_padding_is_inert_forward_and_backward(options: dict[str, Any], junk: float) -> None:
    patch, (query, x) = make(**options), inputs(4)
    clean, dirty = x.clone(), x.clone()
    for b, steps in enumerate(STEPS):
        clean[b, steps:], dirty[b, steps:] = 0, junk
    dirty.requires_grad_()
    assert_close(outcome(patch, query, dirty), outcome(patch, query, clean), atol=0, rtol=0)
    assert dirty.grad.isfinite().all()
    assert all((dirty.grad[b, steps:] == 0).all() for b, steps in enumerate(STEPS))


@pytest.mark.parametrize(("frames", "steps"), [(1, 1), (1, 7), (3, 1), (5, 2), (2, 3000)])
def test_extreme_sizes(frames: int, steps: int) -> None:
    for kind, reach in NEIGHBORHOODS:
        patch = make(torch.float32, neighborhood=kind, window_reach=reach)
        clocks = {"seconds": [torch.arange(steps)], "frame_seconds": [torch.arange(frames)]}
        out = patch(torch.randn(1, frames, TOKENS, QUERY_DIM), torch.randn(1, steps, 1, SIDE_DIM), **clocks)
        assert out.shape == (1, frames, TOKENS, 20)
        assert out.isfinite().all()


def test_folding_is_for_few_keys() -> None:
    assert folding_pays(196, torch.empty(1, 4, 4, 128))  # audio
    assert not folding_pays(196, torch.empty(1, 40, 4, 128))  # dense frames
    assert not folding_pays(4, torch.empty(1, 4, 4, 128))


def test_maps_and_flat_tokens_are_the_same() -> None:
    for options in ({}, {"conv": CONV}):
        patch, (query, x) = make(**options), inputs(4)
        assert torch.equal(run(patch, query, x.unflatten(2, (2, 2))), run(patch, query, x))


def test_autocast_agrees() -> None:
    patch, (query, x) = make(torch.float32), inputs(1, torch.float32)
    expected = run(patch, query, x)
    with torch.autocast("cpu", torch.bfloat16):
        actual = outcome(patch, query, x)
    assert (actual["out"] - expected).abs().mean() < 0.02
    assert all(t.isfinite().all() for t in actual.values())


def test_gradients_are_exact() -> None:
    torch.manual_seed(0)
    patch = Patch(3, 4, 5, hidden_dim=8, side_hidden_dim=6, heads=2, num_layers=2).double()
    params = {n: torch.randn_like(p, requires_grad=True) for n, p in patch.named_parameters() if p.requires_grad}
    query, x = torch.randn(2, 2, 2, 4).double().requires_grad_(), torch.randn(2, 5, 1, 3).double().requires_grad_()

    def f(query: Tensor, x: Tensor, *values: Tensor) -> Tensor:
        return functional_call(patch, dict(zip(params, values)), (query, x, [5, 1]))

    assert torch.autograd.gradcheck(f, (query, x, *params.values()), fast_mode=True)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="heads of 128 channels, got 64 / 2"):
        make(rope=True)
    with pytest.raises(ValueError, match="square grid of tokens, got 3"):
        run(make(rope=True, hidden_dim=128, heads=1), *inputs(3))
    with pytest.raises(ValueError, match="needs time stamps"):
        make(neighborhood="seconds", window_reach=1.0)(*inputs(1), STEPS)
    with pytest.raises(UserError, match="flash-attn, which is not installed"):
        make(kernel="flash")


def fake_flash(q: Tensor, k: Tensor, v: Tensor, q_bounds: Tensor, k_bounds: Tensor, q_max: int, k_max: int) -> Tensor:
    """The contract of flash_attn_varlen_func; a sequence without keys comes out as NaN, the worst it could be."""
    assert q_bounds.dtype == k_bounds.dtype == torch.int32
    assert (int(q_bounds[-1]), int(k_bounds[-1])) == (len(q), len(k))
    assert q_max >= int(q_bounds.diff().max())
    assert k_max >= int(k_bounds.diff().max())
    out = torch.full_like(q, torch.nan)
    for a, b, c, d in zip(q_bounds, q_bounds[1:], k_bounds, k_bounds[1:]):
        if d > c:
            scores = torch.einsum("nhd,jhd->hnj", q[a:b], k[c:d]) / q.shape[-1] ** 0.5
            out[a:b] = torch.einsum("hnj,jhd->nhd", scores.softmax(-1), v[c:d])
    return out


@pytest.mark.parametrize("variant", ["plain", "separate values", "rope"])
@pytest.mark.parametrize(("kind", "reach"), NEIGHBORHOODS)
def test_flash_equals_sdpa(kind: str, reach: float, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("flash_attn")
    module.__spec__ = ModuleSpec("flash_attn", None)
    monkeypatch.setattr(module, "flash_attn_varlen_func", fake_flash, raising=False)
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    results = []
    for kernel in ("sdpa", "flash"):
        patch = make(neighborhood=kind, window_reach=reach, kernel=kernel, **VARIANTS[variant])
        results.append(outcome(patch, *inputs(4)))
    assert_close(results[1], results[0], atol=1e-11, rtol=1e-11)
