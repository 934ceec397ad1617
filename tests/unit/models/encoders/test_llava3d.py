"""The 3D encoder against LLaVA-3D (tests/golden/encoders/scene3d), and the files of its weights."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.paths import GOLDEN, read_json
from helpers.rgbd_scenes import WALL, camera_pose, make_clip_model, position_state
from PIL import Image
from PIL.Image import Resampling
from safetensors.torch import save_file
from torch.testing import assert_close

from pave.media import rgbd
from pave.models.encoders import llava3d as encoder

FOLDER = GOLDEN / "encoders/scene3d"
WEIGHTS = FOLDER / "position_embedding.safetensors"


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    return dict(np.load(FOLDER / "scene3d.npz"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip_model(tmp_path_factory.mktemp("clip"))


def close(actual: torch.Tensor, expected: np.ndarray, tolerance: float) -> None:
    assert_close(actual, torch.from_numpy(expected), atol=tolerance, rtol=0, check_dtype=False)


@torch.no_grad()
@pytest.mark.parametrize(("scene", "scale"), [("scannet", 1000), ("matterport3d", 4000)])
def test_places_and_features_equal_llava_3d(scene: str, scale: int, arrays: dict[str, np.ndarray]) -> None:
    """Holes in the depth, an alignment, one intrinsic matrix for all views or one for each."""
    a = {name.removeprefix(f"{scene}/"): array for name, array in arrays.items()}
    depths = [Image.fromarray(depth) for depth in a["in_depth_png"]]
    metres = torch.from_numpy(np.stack([encoder.crop(d, 336, Resampling.NEAREST) for d in depths])).float() / scale
    close(metres[:, ::7, ::7], a["depth_m_sampled"], 1e-6)
    matrices = np.broadcast_to(a["in_intrinsic"], (3, 4, 4))
    intrinsic = torch.from_numpy(np.stack([encoder.crop_intrinsic(m, depths[0].size, 336) for m in matrices]))
    close(intrinsic, a["intrinsic_out"], 1e-4)
    cameras = torch.from_numpy(a["in_axis_align"] @ a["in_pose"])
    close(cameras, a["pose_out"], 1e-6)
    points = encoder.unproject(metres, intrinsic.float(), cameras.float(), torch.arange(336))
    close(points[:, ::21, ::21], a["xyz_sampled"], 1e-5)
    patches = encoder.unproject(metres, intrinsic.float(), cameras.float(), 14 * torch.arange(24))
    close(patches, a["xyz_24"], 1e-5)
    position = encoder.load_position(WEIGHTS)(patches)
    if scene == "scannet":
        close(position[:, ::5, ::5], a["position_embedding_every_5th"], 2e-5)
    tokens = torch.from_numpy(arrays["patch_tokens"])[0].permute(0, 2, 3, 1) + position
    close(tokens.reshape(1, -1, 16)[:, ::37], a["features_every_37th"], 2e-5)


def test_pixels_equal_the_clip_processor(arrays: dict[str, np.ndarray], clip: Path) -> None:
    image = encoder.crop(Image.fromarray(arrays["scannet/in_rgb_view0"]), 336, Resampling.BICUBIC)
    pixels = encoder.load_clip(clip).normalize(torch.from_numpy(image.copy())[None])[0]
    close(pixels[:, ::12, ::12], arrays["scannet/pixel_values_view0_sampled"], 1e-5)


@pytest.mark.parametrize("row", read_json(FOLDER / "frame_indices.json")["rows"], ids=lambda row: str(row["frames"]))
def test_frames_are_chosen_as_by_llava_3d(row: dict) -> None:
    assert rgbd.sample_every_nth(row["frames"], row["num_frames"]).tolist() == row["indices"]


@pytest.mark.parametrize("size", [(64, 48), (48, 64), (50, 33), (33, 50)])
def test_intrinsics_of_a_crop_fit_its_pixels(size: tuple[int, int]) -> None:
    """A point, drawn where the intrinsics of the image put it, is found where those of the crop put it."""
    matrix = np.array([[30.0, 0, 20, 0], [0, 35, 18, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    image = np.zeros(size[::-1], np.uint16)
    point = np.array([0.25, 0.2, 1, 1])
    x, y, _, _ = matrix @ point
    image[int(y), int(x)] = 1
    small = encoder.crop(Image.fromarray(image), 99, Resampling.NEAREST)
    rows, columns = np.nonzero(small)
    x, y, _, _ = encoder.crop_intrinsic(matrix, size, 99) @ point
    assert abs(columns.mean() - x) <= 3
    assert abs(rows.mean() - y) <= 3


def test_half_a_pixel_is_counted_at_an_odd_cut() -> None:
    """960x540 becomes 597x336, cut by 130 pixels on the left, 131 on the right, and counted as 130.5 (quirk)."""
    columns = np.arange(597, dtype=np.uint16)[None].repeat(336, 0)
    assert encoder.crop(Image.fromarray(columns), 336, Resampling.NEAREST)[0, 0] == 130
    assert encoder.crop_intrinsic(np.eye(4), (960, 540), 336)[0, 2] == -130.5


def test_a_hole_lies_where_the_camera_stands() -> None:
    """Quirk: nothing is left out."""
    depth = torch.full((1, 4, 4), WALL)
    depth[0, 2, 2] = 0
    camera = torch.from_numpy(camera_pose(7)).float()[None]
    points = encoder.unproject(depth, torch.eye(4)[None], camera, torch.arange(4))
    assert points[0, 2, 2].tolist() == [7, 0, 1.5]
    assert points[0, 0, 0].tolist() == [7, WALL, 1.5]


def test_waves_of_different_places_differ() -> None:
    waves = encoder.PositionWaves(1024)
    x = waves(torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, -0.5], [1.0, 2.05, -0.5]]))
    assert x.shape == (3, 1024)
    assert x[0].sum() == 3 * 170
    assert not x[:, 1020:].any()
    assert x[1, 170].item() == pytest.approx(math.cos(2 * math.pi / 32), abs=1e-6)  # x at the longest wave
    assert x[1, 340 + 169].item() == pytest.approx(math.sin(2 * math.pi * 2 / 0.125), abs=1e-4)  # y at the shortest
    assert (x[1] - x[2]).norm() > 3
    assert torch.equal(x[1, :340], x[2, :340])


def test_the_position_embedding_of_a_checkpoint_is_read(tmp_path: Path) -> None:
    """Not that of clicks, which has almost the same names."""
    state = {name: x.half() for name, x in position_state().items()}
    click = "model.video_tower.prompt_encoder.pos_emb3d.position_embedding_head.0.weight"
    save_file({**state, click: torch.zeros(5, 3)}, tmp_path / "a.safetensors")
    position = encoder.load_position(tmp_path / "a.safetensors")
    expected = encoder.PositionMlp(24)
    expected.load_state_dict({name.removeprefix(encoder.PREFIX): x.float() for name, x in state.items()})
    xyz = torch.randn(5, 3)
    with torch.no_grad():
        assert torch.equal(position(xyz), expected(xyz))


@torch.no_grad()
def test_clip_gives_the_layer_before_the_last_without_the_class_token(clip: Path) -> None:
    from transformers import CLIPModel

    images = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    tower = encoder.load_clip(clip).eval()
    reference = CLIPModel.from_pretrained(clip).eval().vision_model
    states = reference(pixel_values=tower.normalize(images), output_hidden_states=True).hidden_states
    assert len(states) == 3
    x = tower.patches(images)
    assert x.shape == (3, 16, 24)
    assert torch.equal(x, states[1][:, 1:])
