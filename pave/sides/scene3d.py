"""The 3D side: tokens of 32 views of a scene, each knowing where in the room its patch lies (LLaVA-3D's features).

encode: a folder of posed RGB-D frames (pave/media/rgbd.py) -> SideTokens float[V,P,C], a step a view, no clock
files:  <scene>.safetensors of ours: float[K,P,C]; or as published <scene>/video_features.pt: float[1,32*24*24,C],
        view by view, row by row, C = 1024
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL.Image import Resampling
from torch import Tensor

from pave.media import feature_files, rgbd
from pave.models.encoders import llava3d, siglip
from pave.sides import _official_features
from pave.types import Item, SideTokens, UserError

DIM = 1024
"""Width of the published features."""
EXTRACTORS = ("llava3d", "clip_3d", "base_3d")
FOLDER_FILE = "video_features.pt"
"""Published, in the folder of its scene."""
VIEWS, TOKENS = 32, 24 * 24
"""Of a published file, which does not state them."""
BATCH = 8
"""Views through the tower at once."""
SAME_SHAPE = 1.02
"""Colour 1296x968 and depth 640x480, as ScanNet's, count as pictures of one shape."""
MOSTLY = 0.5


@dataclass(frozen=True)
class Options:
    """How a scene becomes tokens; the defaults are the release's, but for `position`, which needs weights."""

    tower: Literal["clip", "base"] = "clip"
    """clip: CLIP ViT-L/14-336; base: the base's own SigLIP, with --weights of the base."""
    views: int = 32
    """Frames of a scene, evenly spaced among those with a pose; a shorter scene begins again."""
    position: str = ""
    """LLaVA-3D's checkpoint folder or a file with its position embedding; empty: fixed waves, which need no weights."""
    depth_scale: float = 0
    """Units of a depth picture in a metre; 0: by scene.json, else 1000. Matterport3D has 4000."""
    infos: str = ""
    """EmbodiedScan's infos (JSON), for the axis alignment of each scene."""
    unaligned: bool = False
    """Take ScanNet poses as they are where no file states an axis alignment."""


class Views(NamedTuple):
    """The chosen views of a scene, each once."""

    pictures: Tensor
    """uint8[N,S,S,3]"""
    xyz: Tensor
    """float[N,P,3], metres in the world, of each patch's top left pixel."""
    order: Tensor
    """int64[V], which of the N each step shows."""
    holes: float
    """Share of the patches without depth."""


def extractor(options: Options) -> str:
    """Id of the tower, and of LLaVA-3D's position embedding if CLIP has that."""
    return "base_3d" if options.tower == "base" else "llava3d" if options.position else "clip_3d"


def load(path: Path) -> SideTokens:
    """float32[K,P,C], a step a view, from our feature file, a published .pt one or its folder. UserError: unusable."""
    if path.is_dir():
        path = path / FOLDER_FILE
    if path.suffix != ".pt":
        return feature_files.read(path, EXTRACTORS)
    shape = (1, VIEWS * TOKENS)
    x = _official_features.read(path, lambda found: len(found) == 3 and found[:2] == shape, f"(1, {shape[1]}, width)")
    return SideTokens(x[0].unflatten(0, (VIEWS, TOKENS)))


def find(source: Path) -> list[Item]:
    """The scenes at or below a folder. UserError: none."""
    return rgbd.find(source)


def build(weights: Path, options: Options, device: torch.device) -> llava3d.Encoder:
    """The encoder from a CLIP or base folder and, by option, LLaVA-3D's weights. UserError: not these, other widths."""
    if options.views < 1 or options.depth_scale < 0:
        raise UserError(f"views={options.views} depth_scale={options.depth_scale}: expected at least 1 and at least 0")
    tower = siglip.load(weights) if options.tower == "base" else llava3d.load_clip(weights)
    width = tower.hf.config.hidden_size
    if not options.position:
        return llava3d.Encoder(tower, llava3d.PositionWaves(width)).to(device)
    path = Path(options.position).expanduser()
    position = llava3d.load_position(path)
    if position.width != width:
        raise UserError(f"{path}: for tokens {position.width} wide, the tower in {weights} gives {width}")
    return llava3d.Encoder(tower, position).to(device)


def reader(encoder: llava3d.Encoder, options: Options) -> Callable[[Path], Views]:
    """From the folder of a scene to its views. UserError: something of it is missing, damaged or of another kind."""
    alignments = rgbd.read_alignments(Path(options.infos).expanduser()) if options.infos else None
    return partial(read, size=encoder.size, patch=encoder.patch, options=options, alignments=alignments)


def read(
    folder: Path, size: int, patch: int, options: Options, alignments: Mapping[str, np.ndarray] | None = None
) -> Views:
    """Views of a scene for a tower of `size` pixels and patches of `patch`."""
    align = _alignment(folder, options, alignments)
    scale = options.depth_scale or rgbd.depth_scale(folder)
    frames = rgbd.frames(folder)
    chosen, order = np.unique(rgbd.evenly(len(frames), options.views), return_inverse=True)
    pixels = patch * torch.arange(size // patch)
    pictures, depths, lenses, poses = [], [], [], []
    for frame in (frames[i] for i in chosen):
        color, depth = rgbd.read_color(frame.color), rgbd.read_depth(frame.depth)
        lens = rgbd.lens(folder, frame)
        wide, narrow = sorted((color.width * depth.height, color.height * depth.width), reverse=True)
        if not lens.of_depth and wide > SAME_SHAPE * narrow:
            raise UserError(
                f"{frame.depth}: {depth.width}x{depth.height} is another shape than the colour picture's "
                f"{color.width}x{color.height}; give intrinsics of the depth camera beside {lens.file.name}"
            )
        picture = depth.size if lens.of_depth else color.size
        pictures.append(llava3d.crop(color, size, Resampling.BICUBIC))
        depths.append(llava3d.crop(depth, size, Resampling.NEAREST))
        lenses.append(llava3d.crop_intrinsic(lens.matrix, picture, size))
        poses.append(align @ frame.pose)
    metres = torch.from_numpy(np.stack(depths).astype(np.float32)) / scale
    intrinsic, pose = (torch.from_numpy(np.stack(matrices)).float() for matrices in (lenses, poses))
    xyz = llava3d.unproject(metres, intrinsic, pose, pixels)
    holes = (metres[:, pixels][:, :, pixels] == 0).float().mean().item()
    if holes == 1:
        raise UserError(f"{folder}: no depth in any of its {len(chosen)} views; export the depth pictures again")
    return Views(torch.from_numpy(np.stack(pictures)), xyz.flatten(1, 2), torch.from_numpy(order), holes)


def _alignment(folder: Path, options: Options, alignments: Mapping[str, np.ndarray] | None) -> np.ndarray:
    """float64[4,4], from the poses' world to one whose z is up."""
    name = folder.resolve().name
    if alignments is not None:
        if name not in alignments:
            raise UserError(f"{options.infos}: no axis_align_matrix of '{name}'; leave this scene or infos= out")
        return alignments[name]
    found = rgbd.axis_align(folder)
    if found is None and not options.unaligned:
        raise UserError(
            f"{folder}: no axis alignment; put ScanNet's {name}.txt into it, give infos=JSON, "
            "or take the poses as they are with unaligned=true"
        )
    return np.eye(4) if found is None else found


def note(views: Views) -> str:
    """What is unusual about a scene that was extracted all the same."""
    distinct, wanted = len(views.pictures), len(views.order)
    notes = [f"{distinct} frames for {wanted} views, repeated"] if distinct < wanted else []
    notes += [f"{views.holes:.0%} of the patches have no depth"] if views.holes > MOSTLY else []
    return "; ".join(notes)


@torch.no_grad()
def encode(views: Views, encoder: llava3d.Encoder, options: Options) -> SideTokens:
    """Tokens on the CPU, a step a view; there is no clock."""
    parts = zip(views.pictures.split(BATCH), views.xyz.split(BATCH))
    x = torch.cat([encoder(pictures, xyz).cpu() for pictures, xyz in parts])
    return SideTokens(x[views.order])
