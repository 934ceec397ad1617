"""Music-AVQA: short answers about music videos.

Below root, as in the authors' repository: json_update/avqa-{train,val,test}.json, corrected (splits train, val, test),
or json/avqa-{train,val,test}.json, as first published (train_original, val_original, test_original); videos in
MUSIC-AVQA-videos-Real (ids that start with a digit) and MUCIS-AVQA-videos-Synthetic; or music_avqa_train_instruct.json,
as `pave prepare` writes it (train_prepared). One made-up record:

    {"video_id": "00009999", "question_id": 7, "type": "[\\"Audio-Visual\\", \\"Location\\"]",
     "question_content": "Where is the <LR> <Object>?", "templ_values": "[\\"first\\", \\"violin\\"]",
     "question_deleted": 0, "anser": "left"}
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from pave.tasks import base
from pave.tasks._annotations import Record, field, id_field, prepared_question, read_questions
from pave.tasks._official_files import prepare_splits, write_training_records
from pave.tasks.metrics.aggregate import count_answers, mean
from pave.tasks.metrics.exact_match import strip_answer
from pave.types import Question

PARTS = ("train", "val", "test")
FILES = {
    **{part: f"json_update/avqa-{part}.json" for part in PARTS},
    **{f"{part}_original": f"json/avqa-{part}.json" for part in PARTS},
    **{f"{split}_prepared": f"music_avqa_{split}_instruct.json" for split in ("train", "train_original")},
}
QUESTION_TYPES = {
    "Audio": ("Counting", "Comparative"),
    "Visual": ("Counting", "Location"),
    "Audio-Visual": ("Existential", "Counting", "Location", "Comparative", "Temporal"),
}
"""Question types of each modality; other types do not count for their modality."""
MODALITIES = {f"{modality} {kind}": modality for modality, kinds in QUESTION_TYPES.items() for kind in kinds}
"""Modality of each group of questions."""
CLASSES = re.findall(
    r"\w+",
    "yes no zero one two three four five six seven eight nine ten more_than_ten left middle right indoor outdoor "
    "simultaneously accordion acoustic_guitar bagpipe banjo bassoon cello clarinet congas drum electric_bass erhu "
    "flute guzheng piano pipa saxophone suona trumpet tuba ukulele violin xylophone",
)
"""The 42 possible answers, with _ for spaces."""


class Task(base.Task):
    files = FILES
    splits = tuple(FILES)
    expected_counts = {"val": 4568, "test": 9129, "val_original": 4595, "test_original": 9185}
    """Not of the training files, of which some questions are learnt twice."""
    prepares = True

    def load(self, split: str, root: Path) -> list[Question]:
        """Questions of a split; the group is `modality type`, as `Audio Counting`. Raises UserError."""
        file = self.annotation_file(split, root)
        if split.endswith("prepared"):
            return read_questions(file, partial(prepared_question, _video_path))
        return read_questions(file, _repeat_if_audio if split.startswith("train") else _parse_record)

    def score(self, pairs: Iterable[base.Pair]) -> base.Scores:
        """Accuracy over all questions, by modality and type as published, and `strict`, by the answer named."""
        texts, references, groups = base.columns(pairs)
        modalities = [MODALITIES.get(group, "") for group in groups]
        # Quirk: right is what has the answer anywhere in it, so `nothing` is right for `no`.
        contains = [text is not None and answer.lower() in text.lower() for text, answer in zip(texts, references)]
        named = [named_class(text or "") for text in texts]
        strict = [bool(name) and name == _class_name(answer) for name, answer in zip(named, references)]

        return {
            **mean("accuracy", contains, modalities),
            **mean("accuracy", contains, groups),
            **mean("strict", strict, modalities),
            **mean("strict", strict, groups),
            **count_answers(texts, named),
        }

    def describe(self, split: str) -> dict[str, str]:
        return {
            "accuracy": "the answer stands anywhere in the prediction, capitals or not, as the official code scores",
            "strict": "the one of the 42 answers that the prediction names, as a whole word, is right",
            "prompt": "the question alone",
            "references": "as first published" if "original" in split else "corrected by the authors (json_update)",
        }

    def prepare(self, raw: Path, out: Path) -> list[str]:
        """Write training records of both versions of the annotations, those about sound twice."""
        write = partial(
            write_training_records, self, raw=raw, out=out, video_name=lambda video: video.stem, numeric_ids=True
        )
        return prepare_splits(raw, FILES, {split: partial(write, split) for split in ("train", "train_original")})


def fill_template(text: str, values: Sequence[str]) -> str:
    """Replace each <...> of a question by the next value. Raises ValueError where their numbers differ."""
    places = re.findall("<.*?>", text)
    if len(places) != len(values):
        raise ValueError(f"has {len(places)} places in '{text}' for {len(values)} values")
    for place, value in zip(places, values):
        text = text.replace(place, value, 1)
    return text


def named_class(text: str) -> str:
    """The one of the 42 answers that a text names as a whole word, or ""."""
    words = f"_{_class_name(text)}_"
    classes = [name for name in CLASSES if f"_{name}_" in words]
    if "more_than_ten" in classes:
        classes.remove("ten")
    return classes[0] if len(classes) == 1 else ""


def _class_name(text: str) -> str:
    return "_".join(re.findall(r"[^\W_]+", strip_answer(text)))


def _video_path(name: str) -> str:
    folder = "MUSIC-AVQA-videos-Real" if name[:1].isdecimal() else "MUCIS-AVQA-videos-Synthetic"
    return f"{folder}/{name}.mp4"


def _parse_record(record: Record) -> list[Question]:
    text = fill_template(field(record, "question_content", str), _parse_texts(record, "templ_values"))
    return [
        Question(
            qid=id_field(record, "question_id"),
            video=_video_path(field(record, "video_id", str)),
            text=text,
            answers=(field(record, "anser", str),),
            group=" ".join(_parse_texts(record, "type")),
        )
    ]


def _repeat_if_audio(record: Record) -> list[Question]:
    """Repeat questions about sound, alone or with the video: the official code learns them twice in an epoch."""
    (question,) = _parse_record(record)
    return [question] * (2 if question.group.startswith("Audio") else 1)


def _parse_texts(record: Record, name: str) -> list[str]:
    """A list of texts, which the files hold as a text of JSON."""
    text = field(record, name, str)
    try:
        values = json.loads(text)
    except json.JSONDecodeError:
        values = None
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"has {text!r:.60} as '{name}', expected texts as JSON")
    return values
