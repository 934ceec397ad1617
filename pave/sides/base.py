"""The contract of a side-channel. Each module of pave/sides has one class `SideChannel` that derives from this one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from pave.types import MediaItem, SideTokens, UserError
from pave.utils import registry

VIDEO_SUFFIXES = {".mp4", ".avi", ".mkv", ".webm", ".mov", ".mpg", ".mpeg", ".gif", ".flv", ".ts"}

OptionsT = TypeVar("OptionsT")
"""A frozen dataclass of plain values: what `pave extract SIDE key=value` sets."""
EncoderT = TypeVar("EncoderT", bound=nn.Module)
"""The frozen encoder."""
InputsT = TypeVar("InputsT")
"""What the encoder needs of one media file; it can be pickled."""


class SideChannel(ABC, Generic[OptionsT, EncoderT, InputsT]):
    """One kind of side-channel: how media become tokens, and how stored tokens are read back.

    `pave extract` calls build, reader and encode; train, eval, demo and serve call load. Every fault of a file is a
    UserError that names it. Width, NaN and empty tokens are checked by the callers.
    """

    options_type: type[OptionsT]
    """Checks `key=value`: an unknown key or a wrong value is an error without further code."""
    extractors: ClassVar[tuple[str, ...]]
    """Ids that a feature file may state; `load` refuses files with another id."""
    reads_video: ClassVar[bool] = True
    """Whether the side-channel is in the video file itself, so that demo and serve need no further file."""

    def extractor(self, options: OptionsT) -> str:
        """Id of the encoder, written into every feature file."""
        return self.extractors[0]

    @abstractmethod
    def build(self, weights: Path, options: OptionsT, device: torch.device) -> EncoderT:
        """Load the encoder from `--weights`. Raises UserError where the file or folder holds something else."""

    @abstractmethod
    def reader(self, encoder: EncoderT, options: OptionsT) -> Callable[[Path], InputsT]:
        """A function from a media file to the encoder's inputs. It is pickled: it runs in a process that may die."""

    @abstractmethod
    def encode(self, inputs: InputsT, encoder: EncoderT, options: OptionsT) -> SideTokens:
        """Compute the tokens of one item, on the CPU."""

    @abstractmethod
    def load(self, path: Path) -> SideTokens:
        """Read float32[K,P,C] from one feature file or folder. Raises UserError naming it."""

    def load_random(self, path: Path, rng: Random) -> SideTokens:
        """Read as `load` does, for training: a side-channel may leave out a random part, drawn anew each epoch."""
        return self.load(path)

    def find_items(self, folder: Path) -> list[MediaItem]:
        """List what there is to extract in a folder; by default every video below it."""
        return find_videos(folder)

    def note(self, inputs: InputsT) -> str:
        """Say what is unusual about an item, for notes.jsonl; empty for nothing."""
        return ""

    def suspicion(self, x: Tensor) -> str:
        """Say what looks wrong with stored tokens float[K,P,C], for `pave doctor`; empty for nothing."""
        return ""


def get_side(name: str) -> SideChannel:
    """The side-channel by the name of its module. Raises UserError where there is no such module or no class in it."""
    side_class = vars(registry.load("sides", name)).get("SideChannel")
    if not (isinstance(side_class, type) and issubclass(side_class, SideChannel)):
        raise UserError(f"{name}: has no class SideChannel that derives from pave.sides.base; see doc/extend/side.md")
    return side_class()


def find_videos(folder: Path) -> list[MediaItem]:
    """All videos below a folder, named by their path below it without suffix; hidden files are left out."""
    items = []
    for file in folder.rglob("*"):
        if file.suffix.lower() in VIDEO_SUFFIXES and not file.name.startswith("."):
            items.append(MediaItem(file.relative_to(folder).with_suffix("").as_posix(), file))
    return sorted(items)
