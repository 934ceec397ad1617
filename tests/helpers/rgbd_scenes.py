"""Made-up RGB-D scenes in all layouts, and a tiny CLIP to encode them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pave.models.encoders import llava3d

WALL = 2.0
"""Metres ahead of each camera."""
SCALE = 1000


def make_clip_model(folder: Path, size: int = 32, patch: int = 8, width: int = 24) -> Path:
    """A random CLIP of 2 layers with text tower, under the names and in the files of the published one."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    shared = {"hidden_size": width, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        vision_config={**shared, "image_size": size, "patch_size": patch, "projection_dim": 8},
        text_config={**shared, "vocab_size": 16, "max_position_embeddings": 4, "projection_dim": 8},
        projection_dim=8,
    )
    model = CLIPModel(config)
    model.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder


def position_state(width: int = 24) -> dict[str, torch.Tensor]:
    """A random position embedding under LLaVA-3D's names."""
    torch.manual_seed(1)
    return {llava3d.PREFIX + name: x for name, x in llava3d.PositionMlp(width).state_dict().items()}


def camera_pose(number: int) -> np.ndarray:
    """float64[4,4]: camera `number` stands at x = number, y = 0, z = 1.5 and looks along the world's y."""
    return np.array([[1, 0, 0, number], [0, 0, 1, 0], [0, -1, 0, 1.5], [0, 0, 0, 1]], dtype=np.float64)


def color_image(number: int, width: int, height: int) -> Image.Image:
    """A grey level that tells the number, with a gradient."""
    ramp = np.linspace(0, 60, width)[None, :, None] + np.linspace(0, 60, height)[:, None, None]
    return Image.fromarray((ramp + number % 10 * 12).repeat(3, 2).astype(np.uint8))


def depth_image(width: int, height: int) -> Image.Image:
    """A wall, with a hole in its top left corner."""
    values = np.full((height, width), WALL * SCALE, np.uint16)
    values[:2, :2] = 0
    return Image.fromarray(values)


def intrinsic_matrix(width: int, height: int) -> np.ndarray:
    """float64[4,4]; a lens as wide as the picture, in the middle."""
    matrix = np.eye(4)
    matrix[0, 0] = matrix[1, 1] = width
    matrix[:2, 2] = width / 2, height / 2
    return matrix


def write_matrix(path: Path, matrix: np.ndarray) -> None:
    np.savetxt(path, matrix, fmt="%.8f")


def make_sens_scene(
    folder: Path, frames: int = 12, lost: tuple[int, ...] = (), size: tuple[int, int] = (64, 48)
) -> Path:
    """As SensReader writes it, tracking lost in some frames, the colour pictures twice as large as the depth ones."""
    for name in ("color", "depth", "pose", "intrinsic"):
        (folder / name).mkdir(parents=True)
    large = 2 * size[0], 2 * size[1]
    for i in range(frames):
        color_image(i, *large).save(folder / f"color/{i}.jpg")
        depth_image(*size).save(folder / f"depth/{i}.png")
        write_matrix(folder / f"pose/{i}.txt", np.full((4, 4), -np.inf) if i in lost else camera_pose(i))
    write_matrix(folder / "intrinsic/intrinsic_color.txt", intrinsic_matrix(*large))
    write_matrix(folder / "intrinsic/intrinsic_depth.txt", intrinsic_matrix(*size))
    (folder / f"{folder.name}.txt").write_text(f"sceneType = Office\naxisAlignment = {ALIGN_TEXT} \ncolorWidth = 128\n")
    return folder


ALIGN = np.array([[0, -1, 0, 0.5], [1, 0, 0, -0.25], [0, 0, 1, 0.125], [0, 0, 0, 1]])
ALIGN_TEXT = " ".join(f"{value:.6f}" for value in ALIGN.flatten())


def make_plain_scene(
    folder: Path, frames: int = 3, size: tuple[int, int] = (64, 64), own_intrinsics: bool = False
) -> Path:
    """Our own layout, 500 units of depth in a metre; `own_intrinsics`: of each view, instead of one for all."""
    folder.mkdir(parents=True)
    for i in range(frames):
        color_image(i, *size).save(folder / f"{i}.png")
        depth_image(*size).save(folder / f"{i}.depth.png")
        write_matrix(folder / f"{i}.pose.txt", camera_pose(i))
        if own_intrinsics:
            write_matrix(folder / f"{i}.intrinsic.txt", intrinsic_matrix(*size)[:3, :3] * [[1 + i], [1 + i], [1]])
    if not own_intrinsics:
        write_matrix(folder / "intrinsic.txt", intrinsic_matrix(*size)[:3, :3])
    (folder / "scene.json").write_text(json.dumps({"depth_scale": 500}))
    return folder
