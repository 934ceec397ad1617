"""VCGBench, Video-ChatGPT's benchmark of free text about 499 videos: a judge gives answers 0 to 5, for five things.

Below root: Test_Videos/<name>.mp4 (or .mkv, ...), generic_qa.json, temporal_qa.json and consistency_qa.json. Answers to
the generic questions are judged for correctness, detail and context. Made-up records of the first two and of the third:

    {"video_name": "v_abcDEF12345", "Q": "What does the cat do?", "A": "It sleeps on a chair, then it leaves."}
    {"video_name": "v_abcDEF12345", "Q1": "Where does the cat sleep?", "Q2": "On what does it lie?", "A": "On a chair."}
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

from pave.tasks import base
from pave.tasks._annotations import Record, field, read_question_files
from pave.tasks._video_qa_files import VideoPath, video_finder
from pave.tasks.metrics.aggregate import count_answers, mean
from pave.tasks.metrics.judge_verdicts import JudgeCase, are_judged, verdict_of
from pave.types import Question

SECOND_OF_PAIR = ""
"""Group of a question that has its verdict with the one before it."""
JUDGEMENTS: dict[str, tuple[str, ...]] = {
    "generic": ("correctness", "detail", "context"),
    "temporal": ("temporal",),
    "consistency": ("consistency",),
    SECOND_OF_PAIR: (),
}
"""What the answers of each group are judged for; two that should agree are judged once, with the first."""


class Task(base.OpenEndedTask):
    files = {part: f"{part}_qa.json" for part in ("generic", "temporal", "consistency")}
    splits = ("test", *files)
    expected_counts = {"test": 3493, "generic": 1996, "temporal": 499, "consistency": 998}
    """Each of the 499 records about consistency has two questions."""

    def load(self, split: str, root: Path) -> list[Question]:
        """Questions of a part, or of all for test; the group is the part. Raises UserError."""
        self.check_split(split)
        find = video_finder(root, "Test_Videos", ".mp4")
        parts = self.files if split == "test" else [split]
        return read_question_files({root / self.files[part]: partial(_parse_record, part, find) for part in parts})

    def judge_cases(self, questions: Sequence[Question]) -> list[JudgeCase]:
        """For an answer to a generic question three cases, for two answers that should agree one."""
        partners = {first.qid: second.qid for first, second in pairwise(questions) if second.group == SECOND_OF_PAIR}
        cases = []
        for question in questions:
            for kind in JUDGEMENTS[question.group]:
                if kind != "consistency":
                    cases.append(JudgeCase(kind, (question.qid,)))
                elif question.qid in partners:
                    cases.append(JudgeCase(kind, (question.qid, partners[question.qid])))
        return cases

    def score(self, pairs: Iterable[base.Pair]) -> base.Scores:
        """Mean score for each of the five, where no verdict is 0, and over readable verdicts; means of the five.

        Only counts for answers that no judge has seen.
        """
        pairs = list(pairs)
        counts = count_answers(base.columns(pairs)[0])
        if not are_judged(prediction for _, prediction in pairs):
            return counts

        scores: base.Scores = {}
        readable_scores: base.Scores = {}
        for kind in (kind for kinds in JUDGEMENTS.values() for kind in kinds):
            verdicts = [verdict_of(answer, kind) for question, answer in pairs if kind in JUDGEMENTS[question.group]]
            scores |= mean(kind, [verdict.score if verdict else 0 for verdict in verdicts])
            readable_scores |= mean(f"{kind}_judged", [verdict.score for verdict in verdicts if verdict])
        return {
            **scores,
            **mean("mean", list(scores.values())),
            **readable_scores,
            **mean("mean_judged", list(readable_scores.values())),
            **counts,
        }

    def describe(self, split: str) -> dict[str, str]:
        return {
            "score": "mean of the judge's 0 to 5, cut to whole numbers, for each of the five; no verdict counts as 0",
            "judged": "the same over readable verdicts only, as Video-ChatGPT's evaluation averages",
            "consistency": "one verdict on the answers to two questions",
            "mean": "mean of those of the five that the split has",
            "prompt": "the question alone",
            "references": "the one answer, written by a language model from a description of the video by people",
        }


def _parse_record(part: str, video_path: VideoPath, record: Record) -> Iterable[Question]:
    name, answer = field(record, "video_name", str), field(record, "A", str)
    if part != "consistency":
        yield Question(f"{part}/{name}", video_path(name), field(record, "Q", str), (answer,), part)
        return
    for number, group in ((1, part), (2, SECOND_OF_PAIR)):
        text = field(record, f"Q{number}", str)
        yield Question(f"{part}/{name}/{number}", video_path(name), text, (answer,), group)
