"""Make batches of samples: token ids with room for visual tokens, padded text, videos and side-channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from pave.types import IGNORE_INDEX, VIDEO_TOKEN_ID, SideTokens, UserError
from pave.utils import video_tags

if TYPE_CHECKING:
    from pave.models.base import Base, EncodedChat, Labels
    from pave.models.patched_model import SideBatch


class Sample(NamedTuple):
    """One question, ready for a model."""

    ids: list[int]
    """With VIDEO_TOKEN_ID at every visual position."""
    labels: list[int]
    """IGNORE_INDEX where nothing is supervised."""
    pixels: Tensor | None
    """float[T,3,h,w] of the base's `preprocess`, or float[T,S,Q+D] that `pave extract video` stored."""
    frame_seconds: Tensor | None
    """float[T]"""
    sides: Mapping[str, SideTokens | None]
    """None or absent where this sample has no such side-channel."""
    prompt_ids: list[int] | None = None
    """The question, for a base that encodes a video differently for each."""


def encode_conversation(
    base: Base,
    question: str,
    history: Sequence[tuple[str, str]] = (),
    answer: str | None = None,
    labels: Labels = "answers",
) -> EncodedChat:
    """Encode a conversation about one video, without the tag that its texts may have for the video.

    Raises UserError for texts that would make a further video: it would be filled from another sample of the batch.
    """
    texts = [text for turn in history for text in turn] + [question]
    if answer is not None:
        texts.append(answer)
    texts = video_tags.remove_video_tag(texts, question)

    num_past_texts = 2 * len(history)
    past_turns = tuple(zip(texts[:num_past_texts:2], texts[1:num_past_texts:2]))
    encoded = base.chat(texts[num_past_texts], past_turns, None if answer is None else texts[-1], labels)

    count = encoded.ids.count(VIDEO_TOKEN_ID)
    if count != 1:
        raise UserError(f"question {question[:60]!r}: its conversation shows {count} videos, expected one; correct it")
    return encoded


def expand_video_tokens(
    ids: Sequence[int], labels: Sequence[int], visual: int | Sequence[int], max_length: int
) -> tuple[list[int], list[int]]:
    """Put `visual` many VIDEO_TOKEN_ID, or the ids `visual`, in place of each one, with labels IGNORE_INDEX.

    Returns ids and labels, cut at `max_length`.
    """
    visual_ids = [VIDEO_TOKEN_ID] * visual if isinstance(visual, int) else visual

    expanded_ids: list[int] = []
    expanded_labels: list[int] = []
    for token, label in zip(ids, labels):
        is_video = token == VIDEO_TOKEN_ID
        expanded_ids += visual_ids if is_video else [token]
        expanded_labels += [IGNORE_INDEX] * len(visual_ids) if is_video else [label]
    return expanded_ids[:max_length], expanded_labels[:max_length]


def pad_rows(rows: Sequence[Sequence[int]], value: int, left: bool = False) -> Tensor:
    """int[B,L] from ragged rows, padded at the right or left."""
    length = max(map(len, rows))
    padded = []
    for row in rows:
        padding = [value] * (length - len(row))
        padded.append([*padding, *row] if left else [*row, *padding])
    return torch.tensor(padded)


def collate(
    samples: Sequence[Sample],
    pad_id: int,
    left: bool = False,
    side_dims: Mapping[str, int] | None = None,
    separate_videos: bool = False,
) -> dict[str, Any]:
    """Make a batch for `PatchedModel.forward`; it is padded at the `left` for generation.

    `side_dims` are side-channels that the batch must have, with their C, though no sample may have them. Videos of
    several sizes stay a list, which the base sees one by one; with `separate_videos` always.
    """
    batch: dict[str, Any] = {
        "ids": pad_rows([sample.ids for sample in samples], pad_id, left),
        "labels": pad_rows([sample.labels for sample in samples], IGNORE_INDEX, left),
        "mask": pad_rows([[1] * len(sample.ids) for sample in samples], 0, left).bool(),
    }
    with_video = [sample for sample in samples if sample.pixels is not None]
    if not with_video:
        return batch

    pixels = [sample.pixels for sample in with_video if sample.pixels is not None]
    same_size = len({video.shape for video in pixels}) == 1
    batch["pixels"] = torch.stack(pixels) if same_size and not separate_videos else pixels
    batch["frame_seconds"] = [sample.frame_seconds for sample in with_video]
    prompt_ids = [sample.prompt_ids for sample in with_video if sample.prompt_ids is not None]
    if prompt_ids:
        batch["prompt_ids"] = pad_rows(prompt_ids, 0)

    # In joint training a sample knows the side-channels of its own task only.
    batch["sides"] = {}
    for name in dict.fromkeys(name for sample in with_video for name in sample.sides):
        side = _stack_sides([sample.sides.get(name) for sample in with_video])
        if side is not None:
            batch["sides"][name] = side
    for name, dim in (side_dims or {}).items():
        empty = {"x": torch.zeros(len(with_video), 1, 1, dim), "steps": [0] * len(with_video), "seconds": None}
        batch["sides"].setdefault(name, empty)
    return batch


def _stack_sides(tokens: Sequence[SideTokens | None]) -> SideBatch | None:
    """One side-channel of all samples, zero-padded in time; None if no sample has it."""
    present = [side for side in tokens if side is not None]
    if not present:
        return None

    steps = [0 if side is None else len(side.x) for side in tokens]
    x = present[0].x.new_zeros(len(tokens), max(steps), *present[0].x.shape[1:])
    seconds: list[Tensor] = []
    for row, side in zip(x, tokens):
        if side is not None:
            row[: len(side.x)] = side.x
        seconds.append(torch.empty(0) if side is None or side.seconds is None else side.seconds)

    has_clock = all(side.seconds is not None for side in present)
    return {"x": x, "steps": steps, "seconds": seconds if has_clock else None}


def to_device(value: Any, device: torch.device) -> Any:
    """Move the tensors of a batch to a device; what is planned on the host (steps, seconds) stays there."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: to_device(entry, device) for key, entry in value.items()}
    return value
