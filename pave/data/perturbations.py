"""Remove, exchange or damage side-channels, to see what a model really uses of them."""

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


class Perturbation(NamedTuple):
    """What to do to one side-channel."""

    kind: str
    """drop: it is absent; shuffle: another video's; freeze: its first step all the time; shift, noise: by `amount`."""
    amount: float = 0.0

    def __str__(self) -> str:
        return f"{self.kind}:{self.amount:g}{UNITS[self.kind]}" if UNITS[self.kind] else self.kind


def parse(texts: Sequence[str], sides: Collection[str]) -> dict[str, Perturbation]:
    """Read perturbations, by side-channel, from texts such as audio=shift:2.0. Raises UserError."""
    perturbations: dict[str, Perturbation] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator:
            raise UserError(f"--perturb {text}: expected NAME=KIND, for example audio=drop")

        if name not in sides:
            hint = nearest(name, sides) if sides else "there are none"
            raise UserError(f"--perturb {text}: this model is fed no side-channel '{name}'; {hint}")
        if name in perturbations:
            raise UserError(
                f"--perturb {text}: '{name}' has a perturbation already; expected one for each side-channel"
            )
        perturbations[name] = _parse_kind(text, value)
    return perturbations


def _parse_kind(text: str, value: str) -> Perturbation:
    """Read one value such as shift:2.0; `text` is the whole option, for messages."""
    kind, colon, number = value.partition(":")
    if kind not in UNITS:
        raise UserError(f"--perturb {text}: no perturbation '{kind}'; {nearest(kind, UNITS)}")

    unit = UNITS[kind]
    if not unit and not colon:
        return Perturbation(kind)
    try:
        amount = float(number.removesuffix(unit))
    except ValueError:
        amount = math.nan
    if not unit or not math.isfinite(amount):
        raise UserError(f"--perturb {text}: found '{value}', expected {f'{kind}:NUMBER{unit}' if unit else kind}")
    return Perturbation(kind, amount)


def perturb(perturbation: Perturbation, tokens: SideTokens, seed: str) -> SideTokens:
    """Change tokens by freeze, shift or noise; shape and times stay. `seed` decides the noise."""
    x = tokens.x
    if perturbation.kind == "freeze":
        x = x[:1].expand_as(x)
    elif perturbation.kind == "shift":
        x = x[_shifted_steps(tokens, perturbation.amount)]
    else:
        assert perturbation.kind == "noise"
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(zlib.crc32(seed.encode())))
        # Scaled to what was drawn, so that the ratio holds in every sample and not only on average.
        ratio = x.square().mean() / noise.square().mean() / 10 ** (perturbation.amount / 10)
        x = x + noise * ratio.sqrt()
    return tokens._replace(x=x)


def _shifted_steps(tokens: SideTokens, delay: float) -> torch.Tensor:
    """int[K], which step's tokens each step gets if all happens `delay` seconds later; the first or last is held.

    Without a clock `delay` is in steps. Steps of the same time, as of several cameras, keep their order.
    """
    num_steps = len(tokens.x)
    times = torch.arange(num_steps).float() if tokens.seconds is None else tokens.seconds.unique()
    per_time = num_steps // len(times)
    if per_time * len(times) != num_steps:
        raise UserError(f"shift: {num_steps} steps at {len(times)} times, expected as many at each; extract it again")

    nearest_time = (times[None] - (times[:, None] - delay)).abs().argmin(1)
    step = torch.arange(num_steps)
    return nearest_time[step // per_time] * per_time + step % per_time
