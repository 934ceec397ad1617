"""AVSD: a dialog about a Charades video; what is the last answer? DSTC7's test, from the files of DSTC10.

Below root, videos as <folder>/<video id>.mp4; the files, and one made-up record of each:

    avsd_train.json, Charades_v1_480/
    {"Q7ZZ1": {"data": [{"question": "is he alone ?", "answer": "yes he is ."}, ...], "caption": "...", ...}, ...}

    mock_test_set4DSTC10-AVSD_from_DSTC7_singref.json (split test), ..._multiref.json (test_multiref),
    Charades_vu17_test_480/
    {"dialogs": [{"image_id": "Q7ZZ1", "dialog": [{"question": "is he alone ?", "answer": "yes he is ."}, ...]}, ...]}

    avsd_train_instruct.json, as `pave prepare` writes it (train_prepared)

The last answer of a multiref dialog is a list of six. The release scores single references: CIDEr against six is
another number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pave.tasks import _annotations, _official_files
from pave.tasks.metrics import captions
from pave.tasks.metrics.exact_match import counts
from pave.types import Prediction, Question

FILES = {
    "train": "avsd_train.json",
    "test": "mock_test_set4DSTC10-AVSD_from_DSTC7_singref.json",
    "test_multiref": "mock_test_set4DSTC10-AVSD_from_DSTC7_multiref.json",
    "train_prepared": "avsd_train_instruct.json",
}
SPLITS = tuple(FILES)
EXPECTED = {"test": 1710, "test_multiref": 1710}
"""Dialogs of the published files; how many conversations 7,659 dialogs make for training depends on their lengths."""
CHUNK = 5
"""Rounds of a dialog that are learnt as one conversation."""
HIDDEN = "__UNDISCLOSED__"
"""In the place of the answer, in files for a blind test."""


def load(split: str, root: Path) -> list[Question]:
    """The dialogs of a split, cut into conversations of five rounds for training. Raises UserError."""
    file = _annotations.annotation("avsd", split, FILES, root)
    if split == "train_prepared":
        return _annotations.numbered(
            _annotations.records(file, _annotations.rows, partial(_annotations.prepared, "Charades_v1_480/{}".format))
        )
    unpack, make = (_by_video, _conversations) if split == "train" else (_dialogs, _last_round)
    return _annotations.numbered(_annotations.records(file, unpack, make))


def _by_video(data: Any) -> list[tuple[str, Any]]:
    if not isinstance(data, dict):
        raise ValueError("expected an object of dialogs by video")
    return list(data.items())


def _dialogs(data: Any) -> list[Any]:
    return _annotations.field(data, "dialogs", list)


def _conversations(record: tuple[str, Any]) -> Iterable[Question]:
    video, dialog = record
    rounds = [_round(raw) for raw in _annotations.field(dialog, "data", list)]
    # Quirk: rounds beyond the last whole five are not learnt, and no conversation knows those before it.
    for chunk in range(len(rounds) // CHUNK):
        *history, (question, answer) = rounds[chunk * CHUNK : (chunk + 1) * CHUNK]
        yield Question(f"{video}_{chunk}", f"Charades_v1_480/{video}.mp4", question, (answer,), history=tuple(history))


def _last_round(record: Any) -> Iterable[Question]:
    video = _annotations.field(record, "image_id", str)
    rounds = _annotations.field(record, "dialog", list)
    if not rounds:
        raise ValueError("has an empty dialog")
    last = rounds[-1]
    many = isinstance(last, dict) and isinstance(last.get("answer"), list)
    answers = _annotations.texts(last, "answer") if many else (_annotations.field(last, "answer", str),)
    if HIDDEN in answers:
        raise ValueError(f"has the answer {HIDDEN}: this is a file without answers")
    history = tuple(_round(raw) for raw in rounds[:-1])
    video_file = f"Charades_vu17_test_480/{video}.mp4"
    yield Question(video, video_file, _annotations.field(last, "question", str), answers, history=history)


def _round(raw: Any) -> tuple[str, str]:
    return _annotations.field(raw, "question", str), _annotations.field(raw, "answer", str)


def prompt(question: Question) -> str:
    """The last question as it stands; the rounds before it are turns of the conversation."""
    return question.text


def target(question: Question) -> str:
    """The last answer; the answers of earlier rounds are learnt as well, as turns."""
    return question.answers[0]


def score(pairs: Iterable[tuple[Question, Prediction | None]]) -> dict[str, float]:
    """Caption metrics as fractions (papers print 100 times them); no answer is an empty caption.

    Against several references, without the stop words of the challenge's tool.
    """
    pairs = list(pairs)
    said = [None if p is None else p.text for _, p in pairs]
    many = any(len(q.answers) > 1 for q, _ in pairs)
    keep = _without_stops if many else str
    cut = [(tuple(map(keep, q.answers)), None if text is None else keep(text)) for (q, _), text in zip(pairs, said)]
    return {**captions.score(cut), **counts(said)}


def each(pairs: Sequence[tuple[Question, Prediction | None]]) -> dict[str, float]:
    """The part of `score` of which each question has its own share: none of a caption metric."""
    return counts([None if p is None else p.text for _, p in pairs])


def _without_stops(text: str) -> str:
    """The list of DSTC10 has two words, the comma and the full stop, taken out where they stand alone."""
    return " ".join(word for word in text.split() if word not in (",", "."))


def chance(questions: Sequence[Question]) -> dict[str, float]:
    """There is no such thing for free text."""
    return {}


def about(split: str) -> dict[str, str]:
    """What the numbers of a split are: rules, prompt, references."""
    many = split == "test_multiref"
    return {
        "rule": "captions by pycocoevalcap's rules" + (", without the stop words of DSTC10" if many else ""),
        "prompt": "the dialog with the true answers so far, then the last question alone",
        "references": "six an answer, as the challenges score" if many else "one an answer, as the release scores",
    }


def prepare(raw: Path, out: Path) -> list[str]:
    """Training records, and the last answers in the form of COCO captions, as the release scores them."""

    def train() -> list[str]:
        records = _official_files.instruct(load("train", raw), prompt, lambda video: video.name)
        return [_official_files.write(out / FILES["train_prepared"], records)]

    def test() -> list[str]:
        file = out / "avsd_test_coco.json"
        gold = coco(load("test", raw), {"info": {}, "licenses": [], "type": "captions"})
        return [_official_files.write(file, gold, len(gold["annotations"]))]

    return _official_files.every(raw, FILES, {"train": train, "test": test})


PICTURE = {
    "license": 3,
    "url": "http://farm9.staticflickr.com/8186/8119368305_4e622c8349_z.jpg",
    "file_name": "COCO_val2014_000000391895.jpg",
    "width": 640,
    "date_captured": "2013-11-14 11:18:45",
    "height": 360,
}
"""The release gives every video this picture of COCO, which nothing looks at."""


def coco(questions: Sequence[Question], sample: Mapping[str, Any]) -> dict[str, Any]:
    """Gold answers as an annotation file of COCO captions, with the heads of `sample`, another such file."""
    names = [Path(q.video).stem for q in questions]
    answers = [{"image_id": n, "id": i, "caption": q.answers[0]} for i, (n, q) in enumerate(zip(names, questions))]
    heads = {key: sample[key] for key in ("info", "licenses", "type")}
    return heads | {"annotations": answers, "images": [PICTURE | {"id": name} for name in names]}
