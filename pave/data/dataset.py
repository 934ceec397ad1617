"""Question -> Sample."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pave.config import BaseConfig, Config
from pave.data import visual_token_cache
from pave.data.collate import Sample, encode_conversation, expand_video_tokens
from pave.media.feature_files import feature_file
from pave.media.frame_sampling import FrameSampling
from pave.sides.base import SideChannel, get_side
from pave.types import IGNORE_INDEX, Clip, Images, Question, SideTokens, UserError
from pave.utils import placeholders, registry

log = logging.getLogger(__name__)


class QuestionDataset(Dataset[Sample]):
    """The questions of one split with their videos and features, read when asked for."""

    def __init__(
        self, config: Config, base: Any, split: str, with_answers: bool, seed: int = 0, complete: bool = True
    ) -> None:
        self.config, self.base, self.with_answers, self.seed = config, base, with_answers, seed
        self.frames = select_frame_sampling(config.base, base)
        self.epoch = 0
        """Of the training; what a side draws at random differs from one to the next."""
        self.root = Path(config.data.root)
        self.task: ModuleType = registry.load("tasks", config.data.task)
        self.questions: list[Question] = self.task.load(split, self.root)
        self.side_channels = side_channels(config)
        self.side_source = list(range(len(self.questions)))
        """Whose side-channels each question gets where they are shuffled."""
        self.shuffled: Collection[str] = ()
        self.perturbations: Mapping[str, Callable[[SideTokens, str], SideTokens]] = {}
        """What is done to the tokens of a side-channel, given something to draw from that is its video's own."""
        if complete:
            self.check()

    def __len__(self) -> int:
        return len(self.questions)

    def check(self) -> None:
        """Every text must be about one video and every file be there, before anything starts. Raises UserError.

        It names the first, and of files counts the rest.
        """
        for q in self.questions:
            texts = [*(text for turn in q.history for text in turn), self.task.prompt(q)]
            placeholders.bare([*texts, self.task.target(q)] if self.with_answers else texts, q.qid)
        video = "video tokens" if self.config.data.video_tokens else "video"
        files = {file: video for q in self.questions for file in self.visual_files(q)}
        files |= {self.feature_file(name, q): f"{name} features" for name in self.side_channels for q in self.questions}
        missing = [(file, what) for file, what in files.items() if not file.exists()]
        if self.config.data.missing == "absent":
            absent = [file for file, what in missing if what != video]
            log.info("%d of %d feature files are missing; their questions go without", len(absent), len(files))
            missing = [(file, what) for file, what in missing if what == video]
        if missing:
            file, what = missing[0]
            hint = "" if what == "video" else f"; run `pave extract {what.split()[0]}` first"
            raise UserError(f"{file}: no such {what} file ({len(missing)} of {len(files)} files are missing){hint}")

    def visual_files(self, question: Question) -> list[Path]:
        """Paths of a question's video or pictures, or of what was stored. Raises UserError outside the data root."""
        files = media_paths(question, self.root)
        if self.config.data.video_tokens:
            return [self.root / self.config.data.video_tokens / Path(question.video).with_suffix(".safetensors")]
        return files

    def feature_file(self, side: str, question: Question) -> Path:
        """Path of a question's features: our file, or what was published (.pt or a folder) where there is none."""
        return feature_file(self.root / self.config.sides[side].features, question)

    def text_lengths(self) -> list[int]:
        """About how long each sample is, in characters of text; the visual tokens are the same for all."""
        return [len(self.task.prompt(q)) + len(self.task.target(q)) for q in self.questions]

    def shuffle_sides(self, sides: Collection[str] | None = None) -> None:
        """Give every question these side-channels, or all, of another video: what works now did not come from them."""
        videos = sorted({q.video for q in self.questions})
        if len(videos) < 2:
            raise UserError(f"{self.root}: shuffling side-channels needs at least two videos")
        next_video = dict(zip(videos, videos[1:] + videos[:1]))
        first = {q.video: i for i, q in reversed(list(enumerate(self.questions)))}
        self.side_source = [first[next_video[q.video]] for q in self.questions]
        self.shuffled = self.side_channels if sides is None else sides

    def __getitem__(self, index: int) -> Sample:
        """Decode, preprocess and tokenise one question."""
        return self.make_samples(index, [self.task.target(self.questions[index]) if self.with_answers else None])[0]

    def make_samples(self, index: int, answers: Sequence[str | None]) -> list[Sample]:
        """One question with each of these answers; its video is read once."""
        question = self.questions[index]
        clip, text = self._clip(question), self.task.prompt(question)
        sides = {name: self._side(name, side, index) for name, side in self.side_channels.items()}
        return [make_sample(self.config, self.base, text, clip, sides, question.history, said) for said in answers]

    def _clip(self, question: Question) -> Clip | Images | SideTokens:
        """Key frames or pictures, or what the base once made of key frames."""
        from pave.media.video import read_clip, read_pictures

        frames, (file, *more) = self.frames, self.visual_files(question)
        if not self.config.data.video_tokens:
            return read_pictures([file, *more]) if question.images else read_clip(file, frames)
        if frames.frames_per_second or frames.native_rule:
            raise UserError(
                f"{file}: holds evenly spaced frames; set base.fps=0 base.frame_sampling=uniform, "
                "or data.video_tokens=''"
            )
        if hasattr(self.base, "position_ids"):
            name = self.config.base.name
            raise UserError(f"{file}: tells no size of pictures, which {name} needs; leave data.video_tokens empty")
        stored = read_side_tokens(visual_token_cache.SideChannel().load, file, self.base.query_dim + self.base.embed_dim)
        if len(stored.x) != frames.max_frames:
            raise UserError(f"{file}: made of {len(stored.x)} frames, base.frames is {frames.max_frames}; extract it again")
        return stored

    def _side(self, name: str, side: SideChannel, index: int) -> SideTokens | None:
        question = self.questions[self.side_source[index] if name in self.shuffled else index]
        file = self.feature_file(name, question)
        if self.config.data.missing == "absent" and not file.exists():
            return None
        tokens = read_side_tokens(self._reader(side, index), file, self.config.sides[name].side_dim)
        return self.perturbations[name](tokens, f"{name} {question.video}") if name in self.perturbations else tokens

    def _reader(self, side: SideChannel, index: int) -> Callable[[Path], SideTokens]:
        """How a side reads; in training it may take a random part, which seed, epoch and question decide."""
        if self.with_answers:
            return partial(side.load_random, rng=Random(f"{self.seed} {self.epoch} {index}"))
        return side.load


def media_paths(question: Question, root: Path) -> list[Path]:
    """Where a question's video or pictures are. UserError: a path written so that it leaves the data root."""
    names = question.images or (question.video,)
    for name in (*names, question.features):
        # As it is written: annotations come from others. Links below the root are the user's own, and followed.
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(
                f"{name}: question {question.qid} points outside the data root {root}; write a path below it"
            )
    return [root / name for name in names]


def select_frame_sampling(config: BaseConfig, base: Any) -> FrameSampling:
    """Which frames a base looks at. UserError: a rate below nothing, a base without a rule of its own."""
    if not config.fps >= 0:
        raise UserError(f"base.fps={config.fps}: expected frames a second, or 0 for always base.frames")
    own = getattr(base, "sample_frames", None) if config.frame_sampling == "native" else None
    if config.frame_sampling == "native" and own is None:
        raise UserError(
            f"base.frame_sampling=native: {config.name} has no rule of its own for key frames; "
            "set base.frame_sampling=uniform"
        )
    return FrameSampling(config.frames, config.fps, getattr(base, "frame_multiple", 1), own)


def side_channels(config: Config) -> dict[str, SideChannel]:
    """The side of each patch that the data feeds. Raises UserError for a patch that is not there."""
    for name in config.data.sides or ():
        if name not in config.sides:
            raise UserError(f"data sides: no patch '{name}' in this config; {registry.nearest(name, config.sides)}")
    used = config.sides if config.data.sides is None else config.data.sides
    return {name: get_side(config.sides[name].side or name) for name in used}


def read_side_tokens(read: Callable[[Path], SideTokens], file: Path, dim: int) -> SideTokens:
    """Read and check one feature file. Raises UserError for a wrong width, NaN or no steps."""
    from pave.media.feature_files import check

    tokens = read(file)
    check(tokens, file, dim)
    return tokens


def make_sample(
    config: Config,
    base: Any,
    question: str,
    clip: Clip | Images | SideTokens,
    sides: Mapping[str, SideTokens | None],
    history: tuple[tuple[str, str], ...] = (),
    answer: str | None = None,
) -> Sample:
    """A Sample of one conversation about a clip, pictures, or stored video tokens. UserError: no base for pictures."""
    if isinstance(clip, SideTokens):
        assert clip.seconds is not None
        pixels, seconds = clip.x, clip.seconds
    elif isinstance(clip, Images):
        if not hasattr(base, "preprocess_images"):
            raise UserError(f"base.name={config.base.name}: sees videos only, no pictures; leave these questions out")
        pixels = base.preprocess_images(clip.frames)
        seconds = torch.arange(len(pixels)).float()
    else:
        pixels = base.preprocess(clip.frames)
        seconds = average_frame_times(torch.from_numpy(clip.seconds).float(), len(pixels))
    encoded = encode_conversation(base, question, history, answer, config.data.labels)
    visual = visual_token_cache.ids(base, pixels, seconds)
    ids, labels = expand_video_tokens(encoded.ids, encoded.labels, visual, config.data.max_length)
    if answer is not None and all(label == IGNORE_INDEX for label in labels[1:]):
        raise UserError(f"question '{question[:60]}': its answer is beyond data.max_length={config.data.max_length}")
    return Sample(ids, labels, pixels, seconds, sides, encoded.prompt_ids)


def average_frame_times(seconds: Tensor, rows: int) -> Tensor:
    """float[T] -> float[rows], where a base takes several frames as one; the last is taken again to make them even."""
    if len(seconds) == rows:
        return seconds
    each = math.ceil(len(seconds) / rows)
    return torch.cat([seconds, seconds[-1:].expand(rows * each - len(seconds))]).view(rows, each).mean(1)
