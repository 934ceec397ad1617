"""`pave demo`: one video, one question, one answer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from pave import config as configs
from pave import plug
from pave.config import Config
from pave.data import collate, make_sample, side_tokens
from pave.evaluate import to_device
from pave.io.video import read_clip
from pave.model import Pave
from pave.types import SideTokens, UserError


def answer(
    model: Pave,
    config: Config,
    video: Path,
    question: str,
    features: Mapping[str, Path],
    without: frozenset[str] = frozenset(),
    max_new_tokens: int = 128,
) -> str:
    """What the model says; side-channels come from `features` files or are extracted now, or are left out.

    Raises UserError for an unreadable video, a missing sound track, an unknown side.
    """
    for name in [*features, *without]:
        if name not in config.sides:
            raise UserError(f"this model has no side-channel '{name}'; {plug.nearest(name, config.sides)}")
    clip = read_clip(video, config.base.frames)
    sides = {name: None if name in without else _side(name, config, video, features.get(name)) for name in config.sides}
    sample = make_sample(config, model.base, question, clip, sides)
    device = next(model.parameters()).device
    batch = to_device(collate([sample], model.base.tokenizer.pad_token_id, left=True), device)
    del batch["labels"]
    new = model.generate(**batch, max_new_tokens=max_new_tokens)
    return model.base.tokenizer.decode(new[0], skip_special_tokens=True).strip()


def _side(name: str, config: Config, video: Path, file: Path | None) -> SideTokens:
    """One side-channel, from its file or from the video itself."""
    side = config.sides[name]
    plugin = plug.load("sides", side.side or name)
    if file is not None:
        return side_tokens(plugin.load, file, side.dim)
    if not side.encoder:
        raise UserError(
            f"{video}: no features for '{name}' and no encoder to make them; give --features {name}=FILE, "
            f"sides.{name}.encoder=WEIGHTS, or --without {name}"
        )
    options = configs.options(plugin.Options, side.encoder_options)
    encoder = plugin.build(Path(configs.resolve(side.encoder)), options, torch.device("cpu")).eval()
    tokens = plugin.encode(plugin.reader(encoder, options)(video), encoder, options)
    if tokens.x.shape[-1] != side.dim:
        raise UserError(
            f"{side.encoder}: gives {name} features {tokens.x.shape[-1]} wide, this patch was trained on {side.dim}"
        )
    return tokens
