"""ScanQA: questions about a ScanNet scene. The tests have no public answers: the split val is the test.

Below root: qa/ScanQA_v1.0_{train,val}.json, and a folder scannet/<scene_id> of frames named by number (0.jpg, 1.jpg,
...) for each scene; or scanqa_train_instruct.json and llava3d_scanqa_val_question.json, as `pave prepare` writes them
(train_prepared, val_prepared). One made-up record:

    {"scene_id": "scene9999_00", "object_ids": [4], "object_names": ["chair"], "question_id": "val-scene9999-0",
     "question": "What color is the chair?", "answers": ["brown", "dark brown"]}
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pave.tasks import _annotations, _official_files
from pave.tasks.metrics import captions
from pave.tasks.metrics.exact_match import clean, leo, scene_scores, share
from pave.types import Prediction, Question

FILES = {part: f"qa/ScanQA_v1.0_{part}.json" for part in ("train", "val")}
FILES |= {"train_prepared": "scanqa_train_instruct.json", "val_prepared": "llava3d_scanqa_val_question.json"}
SPLITS = tuple(FILES)
EXPECTED = {"train": 25563, "val": 4675, "val_prepared": 4675}
"""Questions of the published files."""
KINDS = {
    "Where": "Place",
    "How many": "Number",
    "What color": "Color",
    "What is the color": "Color",
    "What shape": "Object nature",
    "What type": "Object nature",
    "What kind": "Object nature",
    "What is": "Object",
}
"""The authors' classes of questions: the first words of these, in their order, that a question has anywhere."""


def load(split: str, root: Path) -> list[Question]:
    """All questions of a split; the group is the class that the authors give a question. Raises UserError."""
    file = _annotations.annotation("scanqa", split, FILES, root)
    if split == "train_prepared":
        return _annotations.numbered(
            _annotations.records(file, _annotations.rows, partial(_annotations.prepared, "scannet/{}".format))
        )
    return _annotations.numbered(
        _annotations.records(file, _annotations.rows, _prepared if split == "val_prepared" else _question)
    )


def _question(raw: Any) -> Iterable[Question]:
    yield _asked(_annotations.ident(raw, "question_id"), raw, _annotations.field(raw, "question", str))


def _prepared(raw: Any) -> Iterable[Question]:
    yield _asked(_annotations.field(raw, "question_id", str), raw, _annotations.field(raw, "text", str))


def _asked(qid: str, raw: Any, text: str) -> Question:
    return Question(
        qid=qid,
        video=f"scannet/{_annotations.field(raw, 'scene_id', str)}",
        text=text,
        answers=_annotations.texts(raw, "answers"),
        group=next((kind for words, kind in KINDS.items() if words in text), "Other"),
    )


def prompt(question: Question) -> str:
    """The question as it stands: the release asks for no short answer."""
    return question.text


def target(question: Question) -> str:
    """The first of the answers."""
    return question.answers[0]


def score(pairs: Iterable[tuple[Question, Prediction | None]]) -> dict[str, float]:
    """Exact match, and caption metrics of the cleaned texts, as fractions (papers print 100 times them).

    EM_leo stops at the first reference that is near, as LEO does; EM_raw compares texts as they are, as the authors do.
    """
    pairs = list(pairs)
    return {**each(pairs), **captions.score(_cleaned(pairs))}


def each(pairs: Sequence[tuple[Question, Prediction | None]]) -> dict[str, float]:
    """The part of `score` of which each question has its own share."""
    cleaned = _cleaned(pairs)
    first = [text is not None and leo(text, references) for references, text in cleaned]
    same = [p is not None and p.text in q.answers for q, p in pairs]
    return {
        **scene_scores(cleaned, [q.group for q, _ in pairs]),
        **share("EM_leo", first),
        **share("EM_raw", same),
    }


def _cleaned(pairs: Sequence[tuple[Question, Prediction | None]]) -> list[tuple[tuple[str, ...], str | None]]:
    return [(tuple(map(clean, q.answers)), None if p is None else clean(p.text)) for q, p in pairs]


def chance(questions: Sequence[Question]) -> dict[str, float]:
    """There is no such thing for free text."""
    return {}


def about(split: str) -> dict[str, str]:
    """What the numbers of a split are: rules, prompt, references."""
    return {
        "EM": "cleaned prediction equals any cleaned reference (release); EM_leo: LEO's order; EM_raw: uncleaned",
        "EM_refined": "or one contains the other; an empty answer is right, see empty",
        "captions": "pycocoevalcap's rules on cleaned texts",
        "prompt": "the question alone",
        "references": "all answers of a question; val is the test",
    }


def prepare(raw: Path, out: Path) -> list[str]:
    """Training records of the first answers, and the numbered questions and answers of the test."""

    def train() -> list[str]:
        records = _official_files.instruct(load("train", raw), prompt, lambda video: video.name)
        return [_official_files.write(out / FILES["train_prepared"], records)]

    def val() -> list[str]:
        rows = [
            {"question_id": f"{i:06}", "scene_id": Path(q.video).name, "text": q.text, "answers": list(q.answers)}
            | {"video": Path(q.video).name}
            for i, q in enumerate(load("val", raw), start=1)
        ]
        keep = ("question_id", "scene_id", "text", "video")
        gold = [{key: row["answers"] if key == "text" else row[key] for key in keep} for row in rows]
        return [
            _official_files.write(out / FILES["val_prepared"], rows),
            _official_files.write(out / "llava3d_scanqa_val_answer.json", gold),
        ]

    return _official_files.every(raw, FILES, {"train": train, "val": val})
