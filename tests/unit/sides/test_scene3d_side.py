"""From an RGB-D scene to its tokens: the scene3d side, by itself and through `pave extract`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.paths import GOLDEN, ROOT
from helpers.rgbd_scenes import (
    ALIGN,
    SCALE,
    WALL,
    depth_image,
    make_clip_model,
    make_plain_scene,
    make_sens_scene,
    position_state,
)
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from pave.data import extraction
from pave.models.encoders.llava3d import PositionWaves
from pave.models.encoders.siglip import normalize
from pave.sides.scene3d import Options, SideChannel, Views
from pave.types import UserError

SIDE = SideChannel()
BASE = ROOT / "pave/sideworld/assets/base"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip_model(tmp_path_factory.mktemp("clip"))


def read(folder: Path, options: Options, clip: Path) -> Views:
    return SIDE.reader(SIDE.build(clip, options, CPU), options)(folder)


def test_views_of_a_sens_scene(clip: Path, tmp_path: Path) -> None:
    """Frames without a pose are no frames; the rest is spread evenly; the wall lies where it must, aligned."""
    folder = make_sens_scene(tmp_path / "scene0001_00", frames=12, lost=(0, 5))
    views = read(folder, Options(views=4), clip)
    numbers = [1, 3, 6, 8]  # every second of 1-4, 6-11
    assert views.order.tolist() == [0, 1, 2, 3]
    assert views.images.shape == (4, 32, 32, 3)
    assert views.images.dtype == torch.uint8
    # The wall is at y = WALL, and turned by the alignment; 64 pixels of depth are 42 here, cut to the middle 32.
    x = views.xyz.view(4, 4, 4, 3)
    assert_close(x[..., 0], torch.full((4, 4, 4), 0.5 - WALL), atol=1e-5, rtol=0)
    focal = 42.0
    across = torch.tensor(numbers)[:, None, None] + (8 * torch.arange(4) - (21 - 5)) * WALL / focal - 0.25
    assert_close(x[..., 1], across.expand(4, 4, 4), atol=1e-5, rtol=0)
    down = 1.5 + 0.125 - (8 * torch.arange(4)[:, None] - 16) * WALL / (64 * 32 / 48)
    assert_close(x[..., 2], down.expand(4, 4, 4), atol=1e-5, rtol=0)
    assert views.holes == 0  # the cut took the only one away
    assert SIDE.note(views) == ""


def test_intrinsics_of_colour_and_depth_camera_agree(clip: Path, tmp_path: Path) -> None:
    """Where those of the depth camera are missing, those of the colour camera count: its image is twice as large."""
    folder = make_sens_scene(tmp_path / "scene0001_00", frames=3, size=(64, 64))
    expected = read(folder, Options(views=3), clip).xyz
    (folder / "intrinsic/intrinsic_depth.txt").unlink()
    assert_close(read(folder, Options(views=3), clip).xyz, expected, atol=1e-6, rtol=0)


def test_views_and_notes_of_a_plain_scene(clip: Path, tmp_path: Path) -> None:
    """500 units a metre, so the wall is twice as far; three frames for five views; a hole in each picture's corner."""
    views = read(make_plain_scene(tmp_path / "room", frames=3), Options(views=5), clip)
    assert views.order.tolist() == [0, 1, 2, 0, 1]
    assert SIDE.note(views) == "3 frames for 5 views, repeated"
    assert views.holes == pytest.approx(1 / 16)
    x = views.xyz.view(3, 4, 4, 3)
    assert_close(x[:, 0, 0], torch.tensor([[0, 0, 1.5], [1, 0, 1.5], [2, 0, 1.5]]))
    assert_close(x[:, 1:, :, 1], torch.full((3, 3, 4), 2 * WALL))
    scaled = read(make_plain_scene(tmp_path / "other", frames=3), Options(views=5, depth_scale=SCALE), clip)
    assert_close(scaled.xyz.view(3, 4, 4, 3)[:, 1:, :, 1], torch.full((3, 3, 4), WALL))


def test_each_view_may_have_intrinsics_of_its_own(clip: Path, tmp_path: Path) -> None:
    """Twice and three times the focal length see half and a third of the wall."""
    x = read(make_plain_scene(tmp_path / "room", own_intrinsics=True), Options(views=3), clip).xyz.view(3, 4, 4, 3)
    widths = x[:, 3, 3, 0] - x[:, 3, 0, 0]
    assert_close(widths[0] / widths, torch.tensor([1.0, 2.0, 3.0]))


def test_alignments_of_embodiedscan(clip: Path, tmp_path: Path) -> None:
    folder = make_sens_scene(tmp_path / "scene0001_00", frames=3)
    aligned = read(folder, Options(views=3), clip).xyz
    (folder / "scene0001_00.txt").unlink()
    with pytest.raises(UserError, match=r"scene0001_00: no axis alignment; put ScanNet's scene0001_00\.txt into it"):
        read(folder, Options(views=3), clip)
    infos = tmp_path / "infos.json"
    infos.write_text(json.dumps({"scannet/scene0001_00": {"axis_align_matrix": ALIGN.tolist()}, "scannet/b": {}}))
    assert torch.equal(read(folder, Options(views=3, infos=str(infos)), clip).xyz, aligned)
    unaligned = read(folder, Options(views=3, unaligned=True), clip).xyz
    turned = torch.cat([unaligned, torch.ones(3, 16, 1)], -1) @ torch.from_numpy(ALIGN).float().T
    assert_close(turned[..., :3], aligned)
    with pytest.raises(UserError, match=r"infos\.json: no axis_align_matrix of 'b'"):
        read(make_sens_scene(tmp_path / "b", frames=3), Options(infos=str(infos)), clip)


def test_depth_that_cannot_be_placed_is_refused(clip: Path, tmp_path: Path) -> None:
    """A colour lens says nothing of a depth picture of another shape; a scene of holes is none."""
    folder = make_plain_scene(tmp_path / "room")
    depth_image(64, 32).save(folder / "1.depth.png")
    with pytest.raises(UserError, match=r"1\.depth\.png: 64x32 is another shape than the colour picture's 64x64"):
        read(folder, Options(views=3), clip)
    (folder / "intrinsic.txt").rename(folder / "depth_intrinsic.txt")
    assert read(folder, Options(views=3), clip).xyz.shape == (3, 16, 3)
    for i in range(3):
        Image.fromarray(np.zeros((64, 64), np.uint16)).save(folder / f"{i}.depth.png")
    with pytest.raises(UserError, match="room: no depth in any of its 3 views"):
        read(folder, Options(views=3), clip)


def test_position_embedding_of_another_width_is_refused(clip: Path) -> None:
    file = GOLDEN / "encoders/scene3d/position_embedding.safetensors"
    with pytest.raises(
        UserError, match=r"position_embedding\.safetensors: for tokens 16 wide, the tower in .* gives 24"
    ):
        SIDE.build(clip, Options(position=str(file)), CPU)


@pytest.mark.parametrize("batch", [1, 8])
def test_tokens_are_those_of_the_tower_plus_those_of_the_position(
    batch: int, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pave.sides.scene3d.BATCH", batch)
    save_file(position_state(), tmp_path / "position.safetensors")
    options = Options(views=5, position=str(tmp_path / "position.safetensors"))
    encoder = SIDE.build(clip, options, CPU).eval()
    views = SIDE.reader(encoder, options)(make_plain_scene(tmp_path / "room"))
    tokens = SIDE.encode(views, encoder, options)
    assert tokens.x.shape == (5, 16, 24)
    assert tokens.seconds is None
    assert torch.equal(tokens.x[:2], tokens.x[3:])
    with torch.no_grad():
        expected = encoder.tower.patches(views.images) + encoder.position(views.xyz)
    assert_close(tokens.x[:3], expected, atol=1e-5, rtol=1e-5)
    assert (expected[0] - expected[1]).abs().max() > 1e-2


@torch.no_grad()
def test_tower_of_the_base(tmp_path: Path) -> None:
    options = Options(views=3, tower="base")
    encoder = SIDE.build(BASE, options, CPU).eval()
    views = SIDE.reader(encoder, options)(make_plain_scene(tmp_path / "room"))
    assert views.images.shape == (3, 64, 64, 3)
    tokens = SIDE.encode(views, encoder, options)
    assert tokens.x.shape == (3, 16, 96)
    position = PositionWaves(96)(views.xyz)
    assert_close(tokens.x - position, encoder.tower(normalize(views.images)), atol=1e-4, rtol=1e-4)


def test_extract(clip: Path, tmp_path: Path) -> None:
    """A folder of scenes in two layouts, one of them broken, through worker processes into a store."""
    make_sens_scene(tmp_path / "raw/scans/scene0001_00", frames=4)
    make_plain_scene(tmp_path / "raw/room")
    make_plain_scene(tmp_path / "raw/bad")
    (tmp_path / "raw/bad/1.depth.png").unlink()
    store, settings = tmp_path / "store", extraction.Settings(dtype="float32", workers=1)
    with pytest.raises(UserError, match=r"1 of 3 items failed.*1\.depth\.png: no such file"):
        extraction.main("scene3d", tmp_path / "raw", store, str(clip), ["views=3"], settings)
    assert SIDE.load(store / "scans/scene0001_00.safetensors").x.shape == (3, 16, 24)
    room = SIDE.load(store / "room.safetensors")
    encoder = SIDE.build(clip, Options(views=3), CPU).eval()
    expected = SIDE.encode(SIDE.reader(encoder, Options(views=3))(tmp_path / "raw/room"), encoder, Options(views=3))
    assert_close(room.x, expected.x, atol=1e-5, rtol=1e-5)
    assert load_file(store / "room.safetensors")["x"].dtype == torch.float32
    with pytest.raises(UserError, match="this store holds features with"):
        extraction.main("scene3d", tmp_path / "raw", store, str(clip), ["views=4"], settings)


def test_ids_of_tower_and_position_differ() -> None:
    ids = [SIDE.extractor(o) for o in (Options(position="a"), Options(), Options(tower="base"))]
    assert tuple(ids) == SIDE.extractors
