"""Probes: side-channels taken away, exchanged or spoilt, to see what a model really uses of them."""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch

from pave.types import SideTokens, UserError
from pave.utils.registry import nearest

UNITS = {"drop": "", "shuffle": "", "freeze": "", "shift": "s", "noise": "dB"}
"""The unit of the number that belongs to each kind; none where there is no number."""


class Probe(NamedTuple):
    """What is done to one side-channel."""

    kind: str
    """drop: it is absent; shuffle: another video's; freeze: its first step all the time; shift, noise: by `amount`."""
    amount: float = 0.0

    def __str__(self) -> str:
        return f"{self.kind}:{self.amount:g}{UNITS[self.kind]}" if UNITS[self.kind] else self.kind


def parse(texts: Sequence[str], sides: Collection[str]) -> dict[str, Probe]:
    """Probes by side from texts such as audio=shift:2.0. Raises UserError."""
    probes: dict[str, Probe] = {}
    for text in texts:
        name, found, told = text.partition("=")
        if not found:
            raise UserError(f"--side {text}: expected SIDE=PROBE, for example audio=drop")
        if name not in sides:
            known = nearest(name, sides) if sides else "there are none"
            raise UserError(f"--side {text}: this model is fed no side-channel '{name}'; {known}")
        if name in probes:
            raise UserError(f"--side {text}: '{name}' has a probe already; expected one for each side-channel")
        probes[name] = _probe(text, told)
    return probes


def _probe(text: str, told: str) -> Probe:
    kind, colon, number = told.partition(":")
    if kind not in UNITS:
        raise UserError(f"--side {text}: no probe '{kind}'; {nearest(kind, UNITS)}")
    if not UNITS[kind] and not colon:
        return Probe(kind)
    try:
        amount = float(number.removesuffix(UNITS[kind]))
    except ValueError:
        amount = math.nan
    if not UNITS[kind] or not math.isfinite(amount):
        expected = f"{kind}:NUMBER{UNITS[kind]}" if UNITS[kind] else kind
        raise UserError(f"--side {text}: found '{told}', expected {expected}")
    return Probe(kind, amount)


def change(probe: Probe, tokens: SideTokens, seed: str) -> SideTokens:
    """Tokens of the same shape and times, spoilt; `seed` decides what is random."""
    x = tokens.x
    if probe.kind == "freeze":
        x = x[:1].expand_as(x)
    elif probe.kind == "shift":
        x = x[_sources(tokens, probe.amount)]
    else:
        assert probe.kind == "noise"
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(zlib.crc32(seed.encode())))
        # Scaled to what was drawn, so that the ratio holds in every sample and not only on average.
        ratio = x.square().mean() / noise.square().mean() / 10 ** (probe.amount / 10)
        x = x + noise * ratio.sqrt()
    return tokens._replace(x=x)


def _sources(tokens: SideTokens, by: float) -> torch.Tensor:
    """int[K]: where each step's tokens come from if all happens `by` seconds later; the ends are held.

    Without a clock `by` is steps. Steps of the same time, as of several cameras, keep their order.
    """
    steps = len(tokens.x)
    times = torch.arange(steps).float() if tokens.seconds is None else tokens.seconds.unique()
    together = steps // len(times)
    if together * len(times) != steps:
        raise UserError(f"shift: {steps} steps at {len(times)} times, expected as many at each; extract it again")
    source = (times[None] - (times[:, None] - by)).abs().argmin(1)
    step = torch.arange(steps)
    return source[step // together] * together + step % together
