"""A server around a tiny model with random weights."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import World
from serving import HOME, WAITING, Served
from tiny import SIDE_DIM
from trained import save_trained, side_config

from pave import evaluate
from pave.encoders import imagebind_audio


@pytest.fixture(scope="session")
def served(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    pytest.importorskip("gradio")
    from starlette.testclient import TestClient

    from pave.serve import server

    out = tmp_path_factory.mktemp("served")
    torch.manual_seed(0)
    imagebind_audio.save(imagebind_audio.Tower(16, 1, 2, SIDE_DIM), out / "tower.safetensors")
    config = side_config(world, {"audio": {"encoder": str(out / "tower.safetensors")}})
    ckpt = save_trained(config, out / "ckpt", 0)
    options = server.Options(megabytes=1, seconds=20, new_tokens=16, waiting=WAITING)
    before = os.environ.get("GRADIO_TEMP_DIR")
    with server.application(*evaluate.load_model(ckpt, None, device="cpu"), options) as app:
        folder = Path(os.environ["GRADIO_TEMP_DIR"]).parent
        with TestClient(app, HOME) as client:
            yield Served(client, folder, ckpt, world.data / "videos/test_00000.mp4")
    assert not folder.exists()
    assert os.environ.get("GRADIO_TEMP_DIR") == before
