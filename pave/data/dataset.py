"""Read the questions of a split, with their videos and side-channels, as samples."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pave.config import BaseConfig, Config
from pave.data import visual_token_cache
from pave.data.collate import Sample, encode_conversation, expand_video_tokens
from pave.media import feature_files
from pave.media.frame_sampling import FrameSampling
from pave.models.base import Base
from pave.sides.base import SideChannel, get_side
from pave.tasks.base import get_task
from pave.types import IGNORE_INDEX, Clip, Images, Question, SideTokens, UserError
from pave.utils import registry, video_tags

log = logging.getLogger(__name__)


class QuestionDataset(Dataset[Sample]):
    """The questions of one split. Videos and features are read when a sample is asked for.

    `with_answers` makes samples to learn from. With `check_files` a missing file raises UserError at once.
    """

    draws_random_parts: ClassVar[bool] = True
    """Whether side-channels may leave out a random part in training."""

    def __init__(
        self, config: Config, base: Base, split: str, with_answers: bool, seed: int = 0, check_files: bool = True
    ) -> None:
        self.config, self.base, self.with_answers, self.seed = config, base, with_answers, seed
        self.frames = select_frame_sampling(config.base, base)
        self.root = Path(config.data.root)
        self.task = get_task(config.data.task)
        self.questions: list[Question] = self.task.load(split, self.root)
        self.side_channels = side_channels(config)
        self.epoch = 0
        """Of the training; what a side-channel draws at random differs from epoch to epoch."""

        self.shuffled: Collection[str] = ()
        """Side-channels that come from another question."""
        self.side_source = list(range(len(self.questions)))
        """Index of the question from which each question gets its shuffled side-channels."""
        self.perturbations: Mapping[str, Callable[[SideTokens, str], SideTokens]] = {}
        """By side-channel: a function of its tokens and of a seed, which is the same for all questions of a video."""

        if check_files:
            self.check()

    def __len__(self) -> int:
        return len(self.questions)

    def check(self) -> None:
        """Check all texts and files before anything starts.

        Raises UserError for a text with more than one video tag; for missing files it names the first and how many.
        """
        for question in self.questions:
            texts = [text for turn in question.history for text in turn]
            texts.append(self.task.prompt(question))
            if self.with_answers:
                texts.append(self.task.target(question))
            video_tags.remove_video_tag(texts, question.qid)

        video_kind = "video tokens" if self.config.data.video_tokens else "video"
        kinds: dict[Path, str] = {}
        for question in self.questions:
            kinds |= dict.fromkeys(self.visual_files(question), video_kind)
        for name in self.side_channels:
            kinds |= {self.feature_file(name, question): f"{name} features" for question in self.questions}

        missing = [file for file in kinds if not file.exists()]
        if self.config.data.missing == "absent":
            missing_videos = [file for file in missing if kinds[file] == video_kind]
            count = len(missing) - len(missing_videos)
            log.info("%d of %d feature files are missing; their questions go without", count, len(kinds))
            missing = missing_videos

        if missing:
            kind = kinds[missing[0]]
            hint = "" if kind == "video" else f"; run `pave extract {kind.split()[0]}` first"
            raise UserError(
                f"{missing[0]}: no such {kind} file ({len(missing)} of {len(kinds)} files are missing){hint}"
            )

    def visual_files(self, question: Question) -> list[Path]:
        """Paths of a question's video or images, or of its stored tokens. Raises UserError outside the data root."""
        files = media_paths(question, self.root)
        if self.config.data.video_tokens:
            return [self.root / self.config.data.video_tokens / Path(question.video).with_suffix(".safetensors")]
        return files

    def feature_file(self, side: str, question: Question) -> Path:
        """Path of a question's features of one side-channel; it may not exist."""
        return feature_files.feature_file(self.root / self.config.sides[side].features, question)

    def text_lengths(self) -> list[int]:
        """Characters of each sample's text, to group samples of like length; visual tokens are as many in all."""
        return [len(self.task.prompt(question)) + len(self.task.target(question)) for question in self.questions]

    def shuffle_sides(self, names: Collection[str] | None = None) -> None:
        """Give every question these side-channels (None: all) of the next video, as a control.

        Raises UserError where there is one video only.
        """
        videos = sorted({question.video for question in self.questions})
        if len(videos) < 2:
            raise UserError(f"{self.root}: shuffling side-channels needs at least two videos")

        next_video = dict(zip(videos, videos[1:] + videos[:1]))
        first_index: dict[str, int] = {}
        for i, question in enumerate(self.questions):
            first_index.setdefault(question.video, i)

        self.side_source = [first_index[next_video[question.video]] for question in self.questions]
        self.shuffled = self.side_channels if names is None else names

    def __getitem__(self, index: int) -> Sample:
        """Decode, preprocess and tokenise one question."""
        answer = self.task.target(self.questions[index]) if self.with_answers else None
        return self.make_samples(index, [answer])[0]

    def make_samples(self, index: int, answers: Sequence[str | None]) -> list[Sample]:
        """Make a sample of one question with each of these answers; its video is read once."""
        question = self.questions[index]
        clip, text = self._read_visual(question), self.task.prompt(question)
        sides = {name: self._read_side(name, side, index) for name, side in self.side_channels.items()}
        return [make_sample(self.config, self.base, text, clip, sides, question.history, answer) for answer in answers]

    def _read_visual(self, question: Question) -> Clip | Images | SideTokens:
        """Key frames, images, or stored tokens of key frames."""
        files, frames = self.visual_files(question), self.frames
        if not self.config.data.video_tokens:
            # Training from stored tokens must run where nothing can decode videos.
            from pave.media.video import read_clip, read_images

            return read_images(files) if question.images else read_clip(files[0], frames)

        file = files[0]
        if frames.frames_per_second or frames.native_rule:
            raise UserError(
                f"{file}: holds evenly spaced frames; set base.fps=0 base.frame_sampling=uniform, "
                "or data.video_tokens=''"
            )
        if self.base.multi_axis_positions:
            name = self.config.base.name
            raise UserError(f"{file}: tells no size of frames, which {name} needs; leave data.video_tokens empty")

        dim = self.base.query_dim + self.base.embed_dim
        stored = read_side_tokens(visual_token_cache.SideChannel().load, file, dim)
        if len(stored.x) != frames.max_frames:
            raise UserError(
                f"{file}: made of {len(stored.x)} frames, base.frames is {frames.max_frames}; extract it again"
            )
        return stored

    def _read_side(self, name: str, side: SideChannel, index: int) -> SideTokens | None:
        """Tokens of one side-channel; None where its file is missing and may be."""
        question = self.questions[self.side_source[index] if name in self.shuffled else index]
        file = self.feature_file(name, question)
        if self.config.data.missing == "absent" and not file.exists():
            return None

        read: Callable[[Path], SideTokens] = side.load
        if self.with_answers and self.draws_random_parts:
            # A side-channel may read a random part in training; a resumed run must draw the same.
            read = partial(side.load_random, rng=Random(f"{self.seed} {self.epoch} {index}"))
        tokens = read_side_tokens(read, file, self.config.sides[name].side_dim)

        if name in self.perturbations:
            tokens = self.perturbations[name](tokens, f"{name} {question.video}")
        return tokens


def media_paths(question: Question, root: Path) -> list[Path]:
    """Paths of a question's video or images. Raises UserError for a path written so that it leaves the data root."""
    names = question.images or (question.video,)
    for name in (*names, question.features):
        # Only the path as written: annotations come from others. Links below the root are the user's own, and followed.
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(
                f"{name}: question {question.qid} points outside the data root {root}; write a path below it"
            )
    return [root / name for name in names]


def select_frame_sampling(config: BaseConfig, base: Base) -> FrameSampling:
    """Which frames a base looks at. Raises UserError for a base without a rule of its own where one is asked for."""
    native_rule = base.sample_frames if config.frame_sampling == "native" else None
    if config.frame_sampling == "native" and native_rule is None:
        raise UserError(
            f"base.frame_sampling=native: {config.name} has no rule of its own for key frames; "
            "set base.frame_sampling=uniform"
        )
    return FrameSampling(config.frames, config.fps, base.frame_multiple, native_rule)


def side_channels(config: Config) -> dict[str, SideChannel]:
    """The side-channel of each patch that the data feeds. Raises UserError for a patch that is not in the config."""
    names = list(config.sides) if config.data.sides is None else config.data.sides
    for name in names:
        if name not in config.sides:
            raise UserError(f"data sides: no patch '{name}' in this config; {registry.nearest(name, config.sides)}")
    return {name: get_side(config.sides[name].side or name) for name in names}


def read_side_tokens(read: Callable[[Path], SideTokens], file: Path, dim: int) -> SideTokens:
    """Read and check one feature file. Raises UserError for a wrong width, NaN or no steps."""
    tokens = read(file)
    feature_files.check_tokens(tokens, file, dim)
    return tokens


def make_sample(
    config: Config,
    base: Base,
    question: str,
    clip: Clip | Images | SideTokens,
    sides: Mapping[str, SideTokens | None],
    history: tuple[tuple[str, str], ...] = (),
    answer: str | None = None,
) -> Sample:
    """Make a sample of one conversation about a clip, images, or stored tokens of a clip.

    Raises UserError where the base takes no images, or where nothing of the answer fits in data.max_length.
    """
    if isinstance(clip, SideTokens):
        assert clip.seconds is not None
        pixels, seconds = clip.x, clip.seconds
    elif isinstance(clip, Images):
        pixels = base.preprocess_images(clip.frames)
        seconds = torch.arange(len(pixels)).float()
    else:
        pixels = base.preprocess(clip.frames)
        seconds = average_frame_times(torch.from_numpy(clip.seconds).float(), len(pixels))

    encoded = encode_conversation(base, question, history, answer, config.data.labels)
    visual_ids = base.visual_token_ids(len(pixels), tuple(pixels.shape[-2:]), seconds)
    ids, labels = expand_video_tokens(encoded.ids, encoded.labels, visual_ids, config.data.max_length)

    if answer is not None and all(label == IGNORE_INDEX for label in labels[1:]):
        raise UserError(f"question '{question[:60]}': its answer is beyond data.max_length={config.data.max_length}")
    return Sample(ids, labels, pixels, seconds, sides, encoded.prompt_ids)


def average_frame_times(seconds: Tensor, num_rows: int) -> Tensor:
    """float[T] -> float[num_rows], the mean time of the frames that a base takes as one row.

    Where they do not divide evenly, the last frame is repeated, as the base does.
    """
    if len(seconds) == num_rows:
        return seconds
    per_row = math.ceil(len(seconds) / num_rows)
    repeats = seconds[-1:].expand(num_rows * per_row - len(seconds))
    return torch.cat([seconds, repeats]).view(num_rows, per_row).mean(1)
