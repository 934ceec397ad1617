"""Sample -> batch: token ids with room for visual tokens, padded text, videos and side-channels side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from pave.types import IGNORE, VIDEO, SideTokens, UserError
from pave.utils import placeholders

if TYPE_CHECKING:
    from pave.models.bases._qwen_chat import Encoded

Mask = Literal["answers", "official"]
"""What is supervised."""


def to_device(value: Any, device: torch.device) -> Any:
    """Tensors of a batch to a device; what is planned on the host (steps, seconds) stays there."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {k: to_device(v, device) for k, v in value.items()}
    return value


class Speaker(Protocol):
    """What a base is here."""

    def chat(
        self,
        question: str,
        history: tuple[tuple[str, str], ...] = (),
        answer: str | None = None,
        mask: Mask = "answers",
    ) -> Encoded:
        """Ids and labels by its template."""


class Sample(NamedTuple):
    """One question, ready for a model."""

    ids: list[int]
    """With VIDEO at every visual position."""
    labels: list[int]
    pixels: Tensor | None
    """What the base's `preprocess` made, float[T,3,h,w], or `pave extract video` stored, float[T,S,Q+D]"""
    frame_seconds: Tensor | None
    """float[T]"""
    sides: Mapping[str, SideTokens | None]
    """None or absent where this sample has no such side-channel."""
    guide: list[int] | None = None
    """Of the question, for a base that sees a video differently for each."""


def conversation(
    base: Speaker,
    question: str,
    history: Sequence[tuple[str, str]] = (),
    answer: str | None = None,
    mask: Mask = "answers",
) -> Encoded:
    """Ids and labels of a conversation about one video, whose tag in the texts goes.

    Raises UserError for texts that would make a further video: it would be filled from another sample of the batch.
    """
    said = [*(text for turn in history for text in turn), question, *([] if answer is None else [answer])]
    texts, end = placeholders.bare(said, question), 2 * len(history)
    turns = tuple(zip(texts[:end:2], texts[1:end:2]))
    encoded = base.chat(texts[end], turns, None if answer is None else texts[-1], mask)
    if (count := encoded.ids.count(VIDEO)) != 1:
        raise UserError(f"question {question[:60]!r}: its conversation shows {count} videos, expected one; correct it")
    return encoded


def expand(
    ids: Sequence[int], labels: Sequence[int], visual: int | Sequence[int], max_length: int
) -> tuple[list[int], list[int]]:
    """Each VIDEO becomes `visual` of them, or these ids; labels IGNORE. The end beyond `max_length` is cut."""
    video = [VIDEO] * visual if isinstance(visual, int) else visual
    wide_ids = [x for i in ids for x in (video if i == VIDEO else [i])]
    wide_labels = [x for i, y in zip(ids, labels) for x in ([IGNORE] * len(video) if i == VIDEO else [y])]
    return wide_ids[:max_length], wide_labels[:max_length]


def pad(rows: Sequence[Sequence[int]], value: int, left: bool = False) -> Tensor:
    """int[B,L] from ragged rows, padded at the right or left."""
    length = max(map(len, rows))
    padded = [[value] * (length - len(r)) + list(r) if left else list(r) + [value] * (length - len(r)) for r in rows]
    return torch.tensor(padded)


def collate(
    samples: Sequence[Sample],
    pad_id: int,
    left: bool = False,
    widths: Mapping[str, int] | None = None,
    apart: bool = False,
) -> dict[str, Any]:
    """A batch for Pave.forward; pad at the left for generation. `widths`: channels to have though no sample has any.

    Videos of several sizes are seen one by one; `apart`, those of one size too.
    """
    ids = pad([s.ids for s in samples], pad_id, left)
    batch: dict[str, Any] = {
        "ids": ids,
        "labels": pad([s.labels for s in samples], IGNORE, left),
        "mask": pad([[1] * len(s.ids) for s in samples], 0, left).bool(),
    }
    videos = [s for s in samples if s.pixels is not None]
    if videos:
        pixels = [s.pixels for s in videos if s.pixels is not None]
        batch["pixels"] = torch.stack(pixels) if len({x.shape for x in pixels}) == 1 and not apart else pixels
        batch["frame_seconds"] = [s.frame_seconds for s in videos]
        if guides := [s.guide for s in videos if s.guide is not None]:
            batch["guides"] = pad(guides, 0)
        # In joint training a sample knows the side-channels of its own task only.
        names = dict.fromkeys(name for s in videos for name in s.sides)
        batch["sides"] = {name: side for name in names if (side := _stack([s.sides.get(name) for s in videos]))}
        for name, width in (widths or {}).items():
            nothing = {"x": torch.zeros(len(videos), 1, 1, width), "steps": [0] * len(videos), "seconds": None}
            batch["sides"].setdefault(name, nothing)
    return batch


def _stack(tokens: Sequence[SideTokens | None]) -> dict[str, Any] | None:
    """SideBatch of one channel, zero-padded in time; None if no sample has it."""
    present = [t for t in tokens if t is not None]
    if not present:
        return None
    steps = [0 if t is None else len(t.x) for t in tokens]
    x = present[0].x.new_zeros(len(tokens), max(steps), *present[0].x.shape[1:])
    for row, t in zip(x, tokens):
        if t is not None:
            row[: len(t.x)] = t.x
    clocked = all(t.seconds is not None for t in present)
    seconds = [torch.empty(0) if t is None or t.seconds is None else t.seconds for t in tokens] if clocked else None
    return {"x": x, "steps": steps, "seconds": seconds}
