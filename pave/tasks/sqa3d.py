"""SQA3D: questions about a ScanNet scene to someone who stands in it.

Below root, a folder scannet/<scene_id> of frames named by number (0.jpg, 1.jpg, ...) for each scene, and one of

* ScanQA_format/SQA_{train,val,test}.json, as in the authors' ScanQA_format.zip, which the release uses (train, ...)
* balanced/v1_balanced_{questions,sqa_annotations}_{train,val,test}_scannetv2.json, as in sqa_task.zip (train_task, ...)
* sqa3d_train_instruct.json and llava3d_sqa3d_test_question.json, as `pave prepare` writes them (train_prepared, ...)

One made-up record of the first:

    {"scene_id": "scene9999_00", "situation": "I am sitting on the bed.", "question": "Which side is the door on?",
     "answers": ["left"], "question_id": 220602999999, "object_ids": [], "object_names": [],
     "position": [0.1, 0.2, 0, 0, 0, 0.5, 0.9]}
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pave.tasks import _annotations, _official_files
from pave.tasks.metrics.exact_match import APART, clean, scene_scores
from pave.types import Prediction, Question

PARTS = ("train", "val", "test")
TASK = "balanced/v1_balanced_{}_{}_scannetv2.json"
FILES = {part: f"ScanQA_format/SQA_{part}.json" for part in PARTS}
FILES |= {f"{part}_task": TASK.format("questions", part) for part in PARTS}
FILES |= {"train_prepared": "sqa3d_train_instruct.json", "test_prepared": "llava3d_sqa3d_test_question.json"}
SPLITS = tuple(FILES)
EXPECTED = {"train": 26623, "val": 3261, "test": 3519, "test_prepared": 3519}
EXPECTED |= {f"{part}_task": EXPECTED[part] for part in PARTS}
"""Questions of the published files."""
KINDS = ("What", "Is", "How", "Can", "Which")


def load(split: str, root: Path) -> list[Question]:
    """All questions of a split; the groups are how a question starts, and the release's number of that. UserError."""
    file = _annotations.annotation("sqa3d", split, FILES, root)
    if split.endswith("_task"):
        given = root / TASK.format("sqa_annotations", split.removesuffix("_task"))
        answers = dict(_annotations.records(given, partial(_annotations.field, name="annotations", kind=list), _answer))
        return _annotations.numbered(_annotations.records(file, _questions, partial(_of_task, answers)))
    if split == "train_prepared":
        return _annotations.numbered(
            _annotations.records(file, _annotations.rows, partial(_annotations.prepared, "scannet/{}".format))
        )
    return _annotations.numbered(
        _annotations.records(file, _annotations.rows, _prepared if split == "test_prepared" else _question)
    )


def _questions(data: Any) -> list[Any]:
    return _annotations.field(data, "questions", list)


def _answer(raw: Any) -> Iterable[tuple[str, str]]:
    answers = [_annotations.field(one, "answer", str) for one in _annotations.field(raw, "answers", list)]
    if not answers:
        raise ValueError("has no answer")
    yield _annotations.ident(raw, "question_id"), answers[0]


def _of_task(answers: dict[str, str], raw: Any) -> Iterable[Question]:
    qid = _annotations.ident(raw, "question_id")
    if qid not in answers:
        raise ValueError(f"is question {qid}, which the annotations do not answer")
    yield _situated(qid, raw, (answers[qid],))


def _question(raw: Any) -> Iterable[Question]:
    yield _situated(_annotations.ident(raw, "question_id"), raw, _annotations.texts(raw, "answers"))


def _situated(qid: str, raw: Any, answers: tuple[str, ...]) -> Question:
    asked = _annotations.field(raw, "question", str)
    return _asked(qid, raw, f"{_annotations.field(raw, 'situation', str)} {asked}", answers, _start(asked))


def _prepared(raw: Any) -> Iterable[Question]:
    kind = f"type{_annotations.field(raw, 'type', int)}"
    text = _annotations.field(raw, "text", str)
    yield _asked(_annotations.field(raw, "question_id", str), raw, text, _annotations.texts(raw, "answers"), kind)


def _asked(qid: str, raw: Any, text: str, answers: tuple[str, ...], group: str) -> Question:
    return Question(qid, f"scannet/{_annotations.field(raw, 'scene_id', str)}", text, answers, group)


def _start(asked: str) -> str:
    """How a question starts, as LEO and the literature count, and the release's number of it."""
    start, words = asked.lstrip().lower(), asked.split()
    kind = next((kind for kind in KINDS if start.startswith(kind.lower())), "Other")
    # Quirk: the release takes the first word as it stands, so `What's` and `what` are of the last type.
    first = words[0] if words and words[0] in KINDS else "Other"
    return f"{kind}{APART}type{(*KINDS, 'Other').index(first)}"


def prompt(question: Question) -> str:
    """Situation and question: the release asks for no short answer."""
    return question.text


def target(question: Question) -> str:
    """The first of the answers."""
    return question.answers[0]


def score(pairs: Iterable[tuple[Question, Prediction | None]]) -> dict[str, float]:
    """Exact match with the first answer, over all questions and by how they start."""
    pairs = list(pairs)
    cleaned = [((clean(q.answers[0]),), None if p is None else clean(p.text)) for q, p in pairs]
    return scene_scores(cleaned, [q.group for q, _ in pairs])


def chance(questions: Sequence[Question]) -> dict[str, float]:
    """There is no such thing for free text."""
    return {}


def about(split: str) -> dict[str, str]:
    """What the numbers of a split are: rules, prompt, references."""
    return {
        "EM": "cleaned prediction equals the cleaned first answer",
        "EM_refined": "or one contains the other; an empty answer is right, see empty",
        "types": "What to Other as LEO counts; type0 to type5 as the release numbers them, by the first word as it is",
        "prompt": "situation and question alone",
        "references": "the first answer of a question",
    }


def prepare(raw: Path, out: Path) -> list[str]:
    """Training records of the first answers, and the questions and answers of the test with their types."""

    def train() -> list[str]:
        records = _official_files.instruct(load("train", raw), prompt, lambda video: video.name)
        return [_official_files.write(out / FILES["train_prepared"], records)]

    def test() -> list[str]:
        rows, gold = [], []
        for q in load("test", raw):
            scene, kind = Path(q.video).name, int(q.group[-1])
            row = {"question_id": q.qid.split("#")[0], "scene_id": scene, "text": q.text}
            rows.append(row | {"answers": list(q.answers), "video": scene, "type": kind})
            gold.append(row | {"text": q.answers[0], "video": scene, "type": kind})
        return [
            _official_files.write(out / FILES["test_prepared"], rows),
            _official_files.write(out / "llava3d_sqa3d_test_answer.json", gold),
        ]

    return _official_files.every(raw, FILES, {"train": train, "test": test})
