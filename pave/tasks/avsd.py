"""AVSD: a dialog about a Charades video; what is the last answer? DSTC7's test, from the files of DSTC10.

Below root, videos as <folder>/<video id>.mp4; the files, and one made-up record of each:

    avsd_train.json, Charades_v1_480/
    {"Q7ZZ1": {"data": [{"question": "is he alone ?", "answer": "yes he is ."}, ...], "caption": "...", ...}, ...}

    mock_test_set4DSTC10-AVSD_from_DSTC7_singref.json (split test), ..._multiref.json (test_multiref),
    Charades_vu17_test_480/
    {"dialogs": [{"image_id": "Q7ZZ1", "dialog": [{"question": "is he alone ?", "answer": "yes he is ."}, ...]}, ...]}

    avsd_train_instruct.json, as `pave prepare` writes it (train_prepared)

The last answer of a multiref dialog is a list of six. The official code scores single references: CIDEr against
six is another number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from pave.tasks import base
from pave.tasks._annotations import Record, field, list_under, prepared_question, read_questions, texts_field
from pave.tasks._official_files import prepare_splits, write_json, write_training_records
from pave.tasks.metrics import captions
from pave.tasks.metrics.aggregate import count_answers
from pave.types import Question

ROUNDS_PER_CONVERSATION = 5
"""Rounds of a dialog that are learnt as one conversation."""
HIDDEN_ANSWER = "__UNDISCLOSED__"
"""In place of the answer, in files for a blind test."""
COCO_IMAGE = {
    "license": 3,
    "url": "http://farm9.staticflickr.com/8186/8119368305_4e622c8349_z.jpg",
    "file_name": "COCO_val2014_000000391895.jpg",
    "width": 640,
    "date_captured": "2013-11-14 11:18:45",
    "height": 360,
}
"""The official code gives every video this image of COCO, which nothing looks at."""


class Task(base.Task):
    files = {
        "train": "avsd_train.json",
        "test": "mock_test_set4DSTC10-AVSD_from_DSTC7_singref.json",
        "test_multiref": "mock_test_set4DSTC10-AVSD_from_DSTC7_multiref.json",
        "train_prepared": "avsd_train_instruct.json",
    }
    splits = tuple(files)
    expected_counts = {"test": 1710, "test_multiref": 1710}
    """Of training conversations the number depends on the lengths of 7,659 dialogs."""
    prepares = True

    def load(self, split: str, root: Path) -> list[Question]:
        """The dialogs of a split, cut into conversations of five rounds for training. Raises UserError."""
        file = self.annotation_file(split, root)
        if split == "train_prepared":
            return read_questions(file, partial(prepared_question, "Charades_v1_480/{}".format))
        if split == "train":
            return read_questions(file, _parse_conversations, _list_videos)
        return read_questions(file, _parse_last_round, list_under("dialogs"))

    def score(self, pairs: Iterable[base.Pair]) -> base.Scores:
        """Caption metrics as fractions (papers print 100 times them); no answer is an empty caption.

        Against several references, without the stop words of the challenge's tool.
        """
        pairs = list(pairs)
        several = any(len(question.answers) > 1 for question, _ in pairs)
        clean = _remove_stop_words if several else str
        items = [
            (tuple(map(clean, question.answers)), None if prediction is None else clean(prediction.text))
            for question, prediction in pairs
        ]
        return {**captions.score(items), **self.score_each(pairs)}

    def score_each(self, pairs: Iterable[base.Pair]) -> base.Scores:
        """Only counts: no caption metric is a mean over questions."""
        return count_answers(base.columns(pairs)[0])

    def describe(self, split: str) -> dict[str, str]:
        several = split == "test_multiref"
        return {
            "rule": "captions by pycocoevalcap's rules" + (", without the stop words of DSTC10" if several else ""),
            "prompt": "the dialog with the true answers so far, then the last question alone",
            "references": "six an answer, as the challenges score"
            if several
            else "one an answer, as officially scored",
        }

    def prepare(self, raw: Path, out: Path) -> list[str]:
        """Write training records, and the last answers in the form of COCO captions, as the official code scores."""

        def prepare_test() -> list[str]:
            questions = self.load("test", raw)
            file = out / "avsd_test_coco.json"
            return [
                write_json(file, to_coco(questions, {"info": {}, "licenses": [], "type": "captions"}), len(questions))
            ]

        train = partial(write_training_records, self, "train", raw, out, lambda video: video.name)
        return prepare_splits(raw, self.files, {"train": train, "test": prepare_test})


def to_coco(questions: Sequence[Question], sample: Mapping[str, object]) -> dict[str, object]:
    """References as an annotation file of COCO captions, with the heads of `sample`, another such file."""
    names = [Path(question.video).stem for question in questions]
    annotations = [
        {"image_id": name, "id": i, "caption": question.answers[0]}
        for i, (name, question) in enumerate(zip(names, questions))
    ]
    heads = {key: sample[key] for key in ("info", "licenses", "type")}
    return {**heads, "annotations": annotations, "images": [{**COCO_IMAGE, "id": name} for name in names]}


def _list_videos(data: Record) -> list[Record]:
    if not isinstance(data, dict):
        raise ValueError("expected an object of dialogs by video")
    return [{"video": video, "dialog": dialog} for video, dialog in data.items()]


def _parse_conversations(record: Record) -> Iterable[Question]:
    video = field(record, "video", str)
    rounds = [_parse_round(turn) for turn in field(field(record, "dialog", object), "data", list)]
    # Quirk: rounds beyond the last whole five are not learnt, and no conversation knows those before it.
    for i in range(len(rounds) // ROUNDS_PER_CONVERSATION):
        start = i * ROUNDS_PER_CONVERSATION
        *history, (question, answer) = rounds[start : start + ROUNDS_PER_CONVERSATION]
        yield Question(f"{video}_{i}", f"Charades_v1_480/{video}.mp4", question, (answer,), history=tuple(history))


def _parse_last_round(record: Record) -> Iterable[Question]:
    video = field(record, "image_id", str)
    rounds = field(record, "dialog", list)
    if not rounds:
        raise ValueError("has an empty dialog")

    *earlier, last = rounds
    several = isinstance(last, dict) and isinstance(last.get("answer"), list)
    answers = texts_field(last, "answer") if several else (field(last, "answer", str),)
    if HIDDEN_ANSWER in answers:
        raise ValueError(f"has the answer {HIDDEN_ANSWER}: this is a file without answers")

    history = tuple(_parse_round(turn) for turn in earlier)
    path = f"Charades_vu17_test_480/{video}.mp4"
    yield Question(video, path, field(last, "question", str), answers, history=history)


def _parse_round(turn: Record) -> tuple[str, str]:
    return field(turn, "question", str), field(turn, "answer", str)


def _remove_stop_words(text: str) -> str:
    """DSTC10's list has two stop words, the comma and the full stop, taken out where they stand alone."""
    return " ".join(word for word in text.split() if word not in (",", "."))
