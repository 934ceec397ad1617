"""The 3D side: tokens of 32 views of a scene, each knowing where in the room its patch lies (LLaVA-3D's features).

items:  folders of posed RGB-D frames (pave/media/rgbd.py)
encode: such a folder -> SideTokens float[V,P,C], a step a view, without times
files:  <scene>.safetensors of ours: float[K,P,C]; or the official <scene>/video_features.pt: float[1,32*24*24,C],
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
from pave.sides import _official_features, base
from pave.types import MediaItem, SideTokens, UserError

OFFICIAL_FILE = "video_features.pt"
"""In the folder of its scene."""
OFFICIAL_VIEWS, OFFICIAL_TOKENS = 32, 24 * 24
"""Of an official file, which does not state them."""
BATCH = 8
"""Views through the tower at once."""
SAME_SHAPE = 1.02
"""Colour 1296x968 and depth 640x480, as ScanNet's, count as images of one aspect ratio."""
MANY_HOLES = 0.5
"""Share of patches without depth that is noted."""


@dataclass(frozen=True)
class Options:
    """How a scene becomes tokens; the defaults are the official ones, but for `position`, which needs weights."""

    tower: Literal["clip", "base"] = "clip"
    """clip: CLIP ViT-L/14-336; base: the base's own SigLIP, with --weights of the base."""
    views: int = 32
    """Frames of a scene, evenly spaced among those with a pose; a shorter scene begins again."""
    position: str = ""
    """LLaVA-3D's checkpoint folder or a file with its position embedding; empty: fixed waves, which need no weights."""
    depth_scale: float = 0
    """Units of a depth image in a metre; 0: by scene.json, else 1000. Matterport3D has 4000."""
    infos: str = ""
    """EmbodiedScan's infos (JSON), for the axis alignment of each scene."""
    unaligned: bool = False
    """Take ScanNet poses as they are where no file states an axis alignment."""

    def __post_init__(self) -> None:
        if self.views < 1 or self.depth_scale < 0:
            raise UserError(f"views={self.views} depth_scale={self.depth_scale}: expected at least 1 and at least 0")


class Views(NamedTuple):
    """The chosen views of a scene, each stored once."""

    images: Tensor
    """uint8[N,S,S,3]"""
    xyz: Tensor
    """float[N,P,3], metres in the world, of each patch's top left pixel."""
    order: Tensor
    """int64[V], which of the N each step shows."""
    holes: float
    """Share of the patches without depth."""


class SideChannel(base.SideChannel[Options, llava3d.Encoder, Views]):
    """Views of a room with the place of every patch."""

    options_type = Options
    extractors = ("llava3d", "clip_3d", "base_3d")
    reads_video = False

    def extractor(self, options: Options) -> str:
        """Id of the tower, and of LLaVA-3D's position embedding if CLIP has that."""
        if options.tower == "base":
            return "base_3d"
        return "llava3d" if options.position else "clip_3d"

    def find_items(self, folder: Path) -> list[MediaItem]:
        """List the scenes at or below a folder. Raises UserError where there is none."""
        return rgbd.find_scenes(folder)

    def build(self, weights: Path, options: Options, device: torch.device) -> llava3d.Encoder:
        """Load the encoder from a CLIP or base folder and, by option, LLaVA-3D's weights. Raises UserError."""
        tower = siglip.load(weights) if options.tower == "base" else llava3d.load_clip(weights)
        width = tower.hf.config.hidden_size
        if not options.position:
            return llava3d.Encoder(tower, llava3d.PositionWaves(width)).to(device)

        path = Path(options.position).expanduser()
        position = llava3d.load_position(path)
        if position.width != width:
            raise UserError(f"{path}: for tokens {position.width} wide, the tower in {weights} gives {width}")
        return llava3d.Encoder(tower, position).to(device)

    def reader(self, encoder: llava3d.Encoder, options: Options) -> Callable[[Path], Views]:
        """From the folder of a scene to its views. Raises UserError: a file missing, damaged or of another kind."""
        alignments = rgbd.read_alignments(Path(options.infos).expanduser()) if options.infos else None
        return partial(read_views, size=encoder.size, patch=encoder.patch, options=options, alignments=alignments)

    @torch.no_grad()
    def encode(self, inputs: Views, encoder: llava3d.Encoder, options: Options) -> SideTokens:
        """Compute tokens on the CPU, a step a view, without times."""
        batches = zip(inputs.images.split(BATCH), inputs.xyz.split(BATCH))
        x = torch.cat([encoder(images, xyz).cpu() for images, xyz in batches])
        return SideTokens(x[inputs.order])

    def load(self, path: Path) -> SideTokens:
        """Read float32[K,P,C] from our file, or from an official .pt or its folder. Raises UserError."""
        if path.is_dir():
            path = path / OFFICIAL_FILE
        if path.suffix != ".pt":
            return feature_files.read(path, self.extractors)

        rows = OFFICIAL_VIEWS * OFFICIAL_TOKENS
        x = _official_features.read(
            path, lambda shape: len(shape) == 3 and shape[:2] == (1, rows), f"(1, {rows}, width)"
        )
        return SideTokens(x[0].unflatten(0, (OFFICIAL_VIEWS, OFFICIAL_TOKENS)))

    def note(self, inputs: Views) -> str:
        """Say where views are repeated, and where most patches have no depth."""
        num_images, num_views = len(inputs.images), len(inputs.order)
        notes = []
        if num_images < num_views:
            notes.append(f"{num_images} frames for {num_views} views, repeated")
        if inputs.holes > MANY_HOLES:
            notes.append(f"{inputs.holes:.0%} of the patches have no depth")
        return "; ".join(notes)


class CroppedView(NamedTuple):
    """Colour and depth of one frame, as the tower takes them."""

    image: np.ndarray
    """uint8[S,S,3]"""
    depth: np.ndarray
    """uint16[S,S], in units of the scene."""
    intrinsic: np.ndarray
    """float64[4,4], in pixels of the cropped image."""


def read_views(
    folder: Path, size: int, patch: int, options: Options, alignments: Mapping[str, np.ndarray] | None = None
) -> Views:
    """Read the views of a scene for a tower of `size` pixels and patches of `patch`. Raises UserError."""
    alignment = _axis_alignment(folder, options, alignments)
    depth_scale = options.depth_scale or rgbd.read_depth_scale(folder)
    frames = rgbd.list_frames(folder)
    # A frame that is shown several times is read once.
    numbers, order = np.unique(rgbd.sample_every_nth(len(frames), options.views), return_inverse=True)

    views = [_crop(folder, frames[i], size) for i in numbers]
    images = torch.from_numpy(np.stack([view.image for view in views]))
    depth = torch.from_numpy(np.stack([view.depth for view in views]).astype(np.float32)) / depth_scale
    intrinsic = torch.from_numpy(np.stack([view.intrinsic for view in views])).float()
    pose = torch.from_numpy(np.stack([alignment @ frames[i].pose for i in numbers])).float()

    pixels = patch * torch.arange(size // patch)
    xyz = llava3d.unproject(depth, intrinsic, pose, pixels)
    holes = (depth[:, pixels][:, :, pixels] == 0).float().mean().item()
    if holes == 1:
        raise UserError(f"{folder}: no depth in any of its {len(views)} views; export the depth pictures again")
    return Views(images, xyz.flatten(1, 2), torch.from_numpy(order), holes)


def _crop(folder: Path, frame: rgbd.Frame, size: int) -> CroppedView:
    color, depth = rgbd.read_color(frame.color), rgbd.read_depth(frame.depth)
    lens = rgbd.find_intrinsics(folder, frame)

    # Intrinsics of the colour camera hold for a depth image of another size, not of another aspect ratio.
    smaller, larger = sorted((color.width * depth.height, color.height * depth.width))
    if not lens.of_depth and larger > SAME_SHAPE * smaller:
        raise UserError(
            f"{frame.depth}: {depth.width}x{depth.height} is another shape than the colour picture's "
            f"{color.width}x{color.height}; give intrinsics of the depth camera beside {lens.file.name}"
        )

    intrinsic = llava3d.crop_intrinsic(lens.matrix, depth.size if lens.of_depth else color.size, size)
    return CroppedView(
        llava3d.crop(color, size, Resampling.BICUBIC), llava3d.crop(depth, size, Resampling.NEAREST), intrinsic
    )


def _axis_alignment(folder: Path, options: Options, alignments: Mapping[str, np.ndarray] | None) -> np.ndarray:
    """float64[4,4], from the poses' world to one whose z is up."""
    name = folder.resolve().name
    if alignments is not None:
        if name not in alignments:
            raise UserError(f"{options.infos}: no axis_align_matrix of '{name}'; leave this scene or infos= out")
        return alignments[name]

    alignment = rgbd.read_axis_align(folder)
    if alignment is not None:
        return alignment
    if options.unaligned:
        return np.eye(4)
    raise UserError(
        f"{folder}: no axis alignment; put ScanNet's {name}.txt into it, give infos=JSON, "
        "or take the poses as they are with unaligned=true"
    )
