"""Tiny data of every task in its true layout: the fixtures, and what is written here."""

from __future__ import annotations

import json
from pathlib import Path

from helpers.paths import FIXTURES
from pave.sideworld.channels import CHANNELS, with_channels
from pave.sideworld.scene import clip_seed, draw_scene, to_record
from pave.tasks.base import get_task
from pave.types import Question

PACKED_QUESTIONS = [
    {"video_name": "zz1", "question": "what is a cat doing?", "question_id": "8"},
    {"video_name": "zz1", "question": "who sleeps?", "question_id": "9"},
    {"video_name": 72, "question": "is it night?", "question_id": 10},
]
PACKED_ANSWERS = [
    {"answer": "sleep", "question_id": "8"},
    {"answer": "cat", "question_id": "9"},
    {"answer": 3, "question_id": 10},
]
ONE_LIST = [
    {"answer": "sleep", "category_id": 3, "id": 5, "question": "what is a cat doing?", "video_id": 1201},
    {"answer": "cat", "id": 6, "question": "who sleeps?", "video_id": 1202},
    {"answer": "cat", "question_id": "7", "question": "who sleeps?", "video_name": "named.mkv"},
]
GENERIC = [
    {"video_name": "v_zz1", "Q": "What does the cat do?", "A": "It sleeps on a chair, then it leaves."},
    {"video_name": "v_zz1", "Q": "What else?", "A": "A dog barks."},
]
TEMPORAL = [{"video_name": "v_zz1", "Q": "What comes first?", "A": "The cat sleeps."}]
CONSISTENCY = [
    {"video_name": "v_zz2", "Q1": "Where does the cat sleep?", "Q2": "On what does it lie?", "A": "On a chair."},
    {"video_name": "v_zz2", "Q1": "Who barks?", "Q2": "Which animal is loud?", "A": "A dog."},
]
CONVERSATIONS = [
    {
        "video": "k400/a.mp4",
        "QA": [{"i": "Watch. ", "q": " What is shown?", "a": "A street."}, {"q": "Is it night?", "a": "No."}],
    },
    {"image": "coco/1.jpg", "QA": [{"q": "What is it?", "a": "A cat."}]},
    {"multi-image": ["m4/1_a.jpg", "m4/1_b.jpg"], "QA": [{"q": "What changed?", "a": "The cat left."}]},
]
PREFERENCES = [
    {"id": "v_1", "video": "a/v_1.mp4", "prompt": "<video>\nWhat is shown?", "chosen": "A dog.", "rejected": "A cat."},
    {"video": "a/v_2.mp4", "prompt": "Who barks?", "chosen": "A dog.", "rejected": "Nobody."},
]


def load_fixture(name: str, split: str) -> list[Question]:
    """Questions of a split of the tiny annotations in tests/fixtures."""
    return get_task(name).load(split, FIXTURES / name)


def write(file: Path, data: object) -> None:
    """Write a text as it is, anything else as JSON."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(data if isinstance(data, str) else json.dumps(data))


def write_open_ended(root: Path) -> None:
    """The benchmarks with free answers, in a folder each, with names of videos that are there."""
    for name in ("msvd_qa", "msrvtt_qa", "tgif_qa"):
        write(root / name / "test_q.json", PACKED_QUESTIONS)
        write(root / name / "test_a.json", PACKED_ANSWERS)
        for split in ("test", "val", "train"):
            write(root / name / f"{split}_qa.json", ONE_LIST)
    write(root / "msvd_qa/youtube_mapping.txt", "abcDEF12345_3_9 vid1201\n-xyz_1_2 vid1202\n")
    for split in ("train", "val", "test"):
        write(root / f"activitynet_qa/{split}_q.json", PACKED_QUESTIONS)
        write(root / f"activitynet_qa/{split}_a.json", [{**a, "type": i + 3} for i, a in enumerate(PACKED_ANSWERS)])
    for part, data in (("generic", GENERIC), ("temporal", TEMPORAL), ("consistency", CONSISTENCY)):
        write(root / f"vcgbench/{part}_qa.json", data)

    videos = ("msvd_qa/videos/zz1.mkv", "msvd_qa/videos/zz1.mp4", "msvd_qa/videos/zz1.json", "tgif_qa/mp4/zz1.gif")
    for video in (*videos, "activitynet_qa/all_test/v_zz1.webm", "vcgbench/Test_Videos/v_zz2.mkv"):
        write(root / video, "")


def write_others(root: Path) -> None:
    """The tasks for training alone, and the small world without its clips."""
    write(root / "videochat2_it/train.json", CONVERSATIONS)
    write(root / "preference/train.jsonl", "\n".join(json.dumps(record) for record in PREFERENCES))
    for split in ("train", "test"):
        scenes = [with_channels(draw_scene(clip_seed(split, 0, i)), CHANNELS) for i in range(2)]
        lines = [json.dumps({"video": f"videos/{split}_{i}.mp4", "scene": to_record(s)}) for i, s in enumerate(scenes)]
        write(root / f"sideworld/scenes_{split}.jsonl", "\n".join(lines) + "\n")
