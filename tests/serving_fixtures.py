"""Servers around a tiny model with random weights: with one patch, and with one for each side-channel."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import World
from serving import HOME, SIDES, WAITING, Served
from tiny import SIDE_DIM
from trained import save_trained, side_config

from pave import evaluate
from pave.config import Config
from pave.encoders import imagebind_audio
from pave.model import Pave
from pave.serve.session import load


@contextmanager
def running(model: Pave, config: Config, ckpt: Path, video: Path) -> Iterator[Served]:
    """A server in this process."""
    from starlette.testclient import TestClient

    from pave.serve import server

    options = server.Options(megabytes=1, seconds=20, new_tokens=16, waiting=WAITING)
    before = os.environ.get("GRADIO_TEMP_DIR")
    with server.application(model, config, options) as app:
        folder = Path(os.environ["GRADIO_TEMP_DIR"]).parent
        with TestClient(app, HOME) as client:
            yield Served(client, folder, ckpt, video)
    assert not folder.exists()
    assert os.environ.get("GRADIO_TEMP_DIR") == before


@pytest.fixture(scope="session")
def patches(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A trained folder for each side-channel, by the name that it has on the server."""
    out = tmp_path_factory.mktemp("patches")
    torch.manual_seed(0)
    imagebind_audio.save(imagebind_audio.Tower(16, 1, 2, SIDE_DIM), out / "tower.safetensors")
    sides: dict[str, dict[str, Any]] = {"audio": {"encoder": str(out / "tower.safetensors")}}
    for name, (side, options) in SIDES.items():
        tower = {"dim": 24, "encoder": str(world.base), "encoder_options": options}
        sides[name] = {"side": side, **tower}
    return {
        name: save_trained(side_config(world, {name: side}), out / name, seed)
        for seed, (name, side) in enumerate(sides.items())
    }


@pytest.fixture(scope="session")
def served(world: World, patches: dict[str, Path]) -> Iterator[Served]:
    """With the audio patch."""
    pytest.importorskip("gradio", reason="needs the extra demo")
    model, config = evaluate.load_model(patches["audio"], None, device="cpu")
    with running(model, config, patches["audio"], world.data / "videos/test_00000.mp4") as one:
        yield one


@pytest.fixture(scope="module")
def many(world: World, patches: dict[str, Path]) -> Iterator[Served]:
    """With all patches, as `--patch NAME=DIR` adds them."""
    pytest.importorskip("gradio", reason="needs the extra demo")
    model, config = load(patches["audio"], None, [], "cpu", [(name, str(patches[name])) for name in SIDES])
    with running(model, config, patches["audio"], world.data / "videos/test_00000.mp4") as one:
        yield one
