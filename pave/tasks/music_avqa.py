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
from typing import Any

from pave.tasks import _annotations, _official_files
from pave.tasks.metrics.exact_match import counts, plain, share
from pave.types import Prediction, Question

PARTS = ("train", "val", "test")
FILES = {part: f"json_update/avqa-{part}.json" for part in PARTS} | {
    f"{part}_original": f"json/avqa-{part}.json" for part in PARTS
}
FILES |= {f"{split}_prepared": f"music_avqa_{split}_instruct.json" for split in ("train", "train_original")}
SPLITS = tuple(FILES)
EXPECTED = {"val": 4568, "test": 9129, "val_original": 4595, "test_original": 9185}
"""Questions of the published files; of the training files, of which some are learnt twice, the number is not known."""
TYPES = {
    "Audio": ("Counting", "Comparative"),
    "Visual": ("Counting", "Location"),
    "Audio-Visual": ("Existential", "Counting", "Location", "Comparative", "Temporal"),
}
"""The question types of each modality; others do not count for their modality."""
CLASSES = re.findall(
    r"\w+",
    "yes no zero one two three four five six seven eight nine ten more_than_ten left middle right indoor outdoor "
    "simultaneously accordion acoustic_guitar bagpipe banjo bassoon cello clarinet congas drum electric_bass erhu "
    "flute guzheng piano pipa saxophone suona trumpet tuba ukulele violin xylophone",
)
"""The 42 answers there are, with _ for spaces."""


def load(split: str, root: Path) -> list[Question]:
    """All questions of a split; the group is `modality type`, as `Audio Counting`. Raises UserError."""
    file = _annotations.annotation("music_avqa", split, FILES, root)
    if split.endswith("prepared"):
        return _annotations.numbered(
            _annotations.records(file, _annotations.rows, partial(_annotations.prepared, _video))
        )
    make = _twice_if_heard if split.startswith("train") else _question
    return _annotations.numbered(_annotations.records(file, _annotations.rows, make))


def _video(name: str) -> str:
    folder = "MUSIC-AVQA-videos-Real" if name[:1].isdecimal() else "MUCIS-AVQA-videos-Synthetic"
    return f"{folder}/{name}.mp4"


def _question(raw: Any) -> list[Question]:
    return [
        Question(
            qid=_annotations.ident(raw, "question_id"),
            video=_video(_annotations.field(raw, "video_id", str)),
            text=fill(_annotations.field(raw, "question_content", str), _texts(raw, "templ_values")),
            answers=(_annotations.field(raw, "anser", str),),
            group=" ".join(_texts(raw, "type")),
        )
    ]


def _twice_if_heard(raw: Any) -> list[Question]:
    """As released: what asks for the sound, alone or with the picture, is learnt twice in an epoch."""
    found = _question(raw)
    return found * 2 if found[0].group.startswith("Audio") else found


def fill(text: str, values: Sequence[str]) -> str:
    """A question with each <...> replaced by the next value. Raises ValueError where their numbers differ."""
    places = re.findall("<.*?>", text)
    if len(places) != len(values):
        raise ValueError(f"has {len(places)} places in '{text}' for {len(values)} values")
    for place, value in zip(places, values):
        text = text.replace(place, value, 1)
    return text


def _texts(raw: Any, name: str) -> list[str]:
    """A list of texts, which the files hold as a text of JSON."""
    text = _annotations.field(raw, name, str)
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        found = None
    if not isinstance(found, list) or not all(isinstance(value, str) for value in found):
        raise ValueError(f"has {text!r:.60} as '{name}', expected texts as JSON")
    return found


def prompt(question: Question) -> str:
    """The question as it stands."""
    return question.text


def target(question: Question) -> str:
    """The answer."""
    return question.answers[0]


def score(pairs: Iterable[tuple[Question, Prediction | None]]) -> dict[str, float]:
    """Accuracy over all questions, by modality and by type as published, and `strict`, by the class an answer names.

    A question without a prediction is wrong, and counted as missing.
    """
    pairs = list(pairs)
    said = [None if p is None else p.text for _, p in pairs]
    gold = [q.answers[0] for q, _ in pairs]
    groups = [q.group for q, _ in pairs]
    modality = {f"{name} {kind}": name for name, kinds in TYPES.items() for kind in kinds}
    modalities = [modality.get(group, "") for group in groups]
    # Quirk: right is what has the answer anywhere in it, so `nothing` is right for `no`.
    right = [text is not None and answer.lower() in text.lower() for text, answer in zip(said, gold)]
    read = [named(text or "") for text in said]
    exact = [bool(name) and name == _key(answer) for name, answer in zip(read, gold)]
    return {
        **share("accuracy", right, modalities),
        **share("accuracy", right, groups),
        **share("strict", exact, modalities),
        **share("strict", exact, groups),
        **counts(said, read),
    }


def named(text: str) -> str:
    """The one of the 42 answers that a text names as a whole word, or ""."""
    words = f"_{_key(text)}_"
    found = [name for name in CLASSES if f"_{name}_" in words]
    if "more_than_ten" in found:
        found.remove("ten")
    return found[0] if len(found) == 1 else ""


def _key(text: str) -> str:
    return "_".join(re.findall(r"[^\W_]+", plain(text)))


def chance(questions: Sequence[Question]) -> dict[str, float]:
    """There is no such thing for free text."""
    return {}


def about(split: str) -> dict[str, str]:
    """What the numbers of a split are: rules, prompt, references."""
    return {
        "accuracy": "the answer stands anywhere in the prediction, capitals or not, as the release scores",
        "strict": "the one of the 42 answers that the prediction names, as a whole word, is right",
        "prompt": "the question alone",
        "references": "as first published" if "original" in split else "corrected by the authors (json_update)",
    }


def prepare(raw: Path, out: Path) -> list[str]:
    """Training records of both versions of the annotations, what asks for the sound twice."""

    def make(split: str) -> list[str]:
        records = _official_files.instruct(load(split, raw), prompt, lambda video: video.stem)
        return [_official_files.write(out / FILES[f"{split}_prepared"], [r | {"id": int(r["id"])} for r in records])]

    return _official_files.every(raw, FILES, {split: partial(make, split) for split in ("train", "train_original")})
