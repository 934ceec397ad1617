"""A tiny data set for each published recipe: files named and shaped as they are published, made-up content."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from helpers.media_files import pattern, write_clip

LEARNT, ASKED = 4, 3
"""Questions to learn and to answer."""
PARTS = {"train": LEARNT, "val": ASKED}
AUDIO, DENSE, EXO, SCENE = (5, 1024), (16, 5, 1024), (32, 196, 1152), (1, 32 * 24 * 24, 1024)
"""Published shapes; the first two are as long as their video."""


def make(name: str, root: Path) -> Path:
    """The data of a recipe below root."""
    makers = {
        "avsd": avsd,
        "avqa": avqa,
        "music_avqa": music_avqa,
        "scanqa": scanqa,
        "sqa3d": sqa3d,
        "egoexo4d_dp": egoexo,
        "enhanced_video": llava_video,
        "multiple_side_channels": avsd_with_dense_frames,
    }
    makers[name](root)
    return root


def avsd(root: Path) -> None:
    words = ("red", "warm", "loud", "near", "late", "new")
    rounds = [{"question": f"is it {word} ?", "answer": f"yes , it is {word} ."} for word in words]
    # Six rounds are one conversation of five and a rest.
    learnt = {f"Q7ZZ{i}": {"data": rounds[i:] + rounds[:i], "caption": "a", "summary": "b"} for i in range(LEARNT)}
    asked = [{"image_id": f"T4YY{i}", "dialog": rounds[: i + 1]} for i in range(ASKED)]
    write(root / "avsd_train.json", learnt)
    write(
        root / "mock_test_set4DSTC10-AVSD_from_DSTC7_singref.json",
        {"type": "scene_aware_dialog", "version": "0.1", "dialogs": asked},
    )
    for folder, videos in (("Charades_v1", list(learnt)), ("Charades_vu17_test", [d["image_id"] for d in asked])):
        for i, video in enumerate(videos):
            clip(root / f"{folder}_480/{video}.mp4", i)
            published(root / f"{folder}_audio_imagebind_feat/{video}.pt", *AUDIO, dtype=torch.bfloat16)


def avsd_with_dense_frames(root: Path) -> None:
    avsd(root)
    for file in root.glob("Charades_*_480/*.mp4"):
        published(root / f"features/dense/{file.stem}.pt", *DENSE, dtype=torch.float16)


def avqa(root: Path) -> None:
    for part, count in PARTS.items():
        videos = [f"-{part}0_ab-9QxY_0000{i}0" for i in range(count)]  # names may start with a dash
        records = [
            {
                **{"id": i, "video_name": video, "video_id": 70 + i, "question_text": f"What sounds {i}?"},
                **{"multi_choice": ["kettle", "drum", "train", "dog"], "answer": i % 4},
                **{"question_relation": "Both", "question_type": "Which"},
            }
            for i, video in enumerate(videos)
        ]
        write(root / f"annotation/{part}_qa.json", records)
        for i, video in enumerate(videos):
            clip(root / f"video/{video}.mp4", i)
            published(root / f"features/audio/{video}.pt", *AUDIO, dtype=torch.bfloat16)


def music_avqa(root: Path) -> None:
    kinds = (["Visual", "Counting"], ["Audio", "Comparative"], ["Audio-Visual", "Location"])
    folders = ("MUSIC-AVQA-videos-Real", "MUCIS-AVQA-videos-Synthetic")
    for part, first in (("train", "00001"), ("test", "00002")):
        records = [
            {
                **{"video_id": ("", "sa")[i % 2] + f"{first}{i}", "question_id": 7 + i, "type": json.dumps(kind)},
                **{"question_content": "Where is the <LR> <Object>?", "templ_values": '["first", "violin"]'},
                **{"question_deleted": 0, "anser": ("left", "right", "two")[i]},
            }
            for i, kind in enumerate(kinds)
        ]
        write(root / f"json_update/avqa-{part}.json", records)
        for i, record in enumerate(records):
            clip(root / f"{folders[i % 2]}/{record['video_id']}.mp4", i)
            published(root / f"features/audio/{record['video_id']}.pt", *AUDIO, dtype=torch.bfloat16)


def scanqa(root: Path) -> None:
    for part, count in PARTS.items():
        records = [
            {
                **{"scene_id": f"scene000{i % 2}_00", "object_ids": [4], "object_names": ["chair"]},
                **{"question_id": f"{part}-scene000{i % 2}-{i}", "question": f"What stands beside chair {i}?"},
                "answers": ["a brown table", "table"],
            }
            for i in range(count)
        ]
        write(root / f"qa/ScanQA_v1.0_{part}.json", records)
    rooms(root)


def sqa3d(root: Path) -> None:
    for part, count in (("train", LEARNT), ("test", ASKED)):
        records = [
            {
                **{
                    "answers": ["left"],
                    "object_ids": [],
                    "object_names": [],
                    "question": f"Which side is door {i} on?",
                },
                **{"situation": "I am sitting on the bed.", "question_id": 220602999990 + i},
                **{"scene_id": f"scene000{i % 2}_00", "position": [0.1, 0.2, 0, 0, 0, 0.5, 0.9]},
            }
            for i in range(count)
        ]
        write(root / f"ScanQA_format/SQA_{part}.json", records)
    rooms(root)


def rooms(root: Path) -> None:
    """Two ScanNet scenes: every twentieth frame, fewer than a base sees, and their 3D features."""
    for scene in ("scene0000_00", "scene0001_00"):
        folder = root / "scannet" / scene
        folder.mkdir(parents=True)
        for i in range(3 + int(scene[8])):
            Image.fromarray(pattern(i)).save(folder / f"{20 * i}.jpg")
        published(root / f"features/scene3d/{scene}/video_features.pt", *SCENE, dtype=torch.float16)


def egoexo(root: Path) -> None:
    levels = ("Novice", "Early Expert", "Intermediate Expert", "Late Expert")
    for part, count in PARTS.items():
        takes = [f"takes/{part}_bb_0{i}/frame_aligned_videos" for i in range(count)]
        records = [
            {
                **{"task_id": 1, "task_name": "Dribble drill", "scenario_name": "Basketball", "university_id": "u"},
                **{"origin_participant_id": "1", "take_uid": f"0000-{part}-{i}", "proficiency_score": levels[i % 4]},
                "video_paths": {"ego": f"{take}/aria01_214-1.mp4", "exo1": f"{take}/cam01.mp4"},
            }
            for i, take in enumerate(takes)
        ]
        write(root / f"annotations/proficiency_demonstrator_{part}.json", {"annotations": records})
        for i, take in enumerate(takes):
            clip(root / f"{take}/downscaled/448/aria01_214-1.mp4", i)
            for camera in ("cam02", "cam01")[: 2 - i % 2]:
                published(root / f"features/exo/{take}/downscaled/448/{camera}.pt", *EXO, dtype=torch.bfloat16)


def llava_video(root: Path) -> None:
    """A video for each of the four folders, with three questions, of which two are learnt."""
    sources = {
        "academic": "academic_source/activitynet/v_",
        "youtube": "liwei_youtube_videos/videos/youtube_video_2024/",
    }
    for i, length in enumerate(("1_2_m", "2_3_m")):
        for kind, source in sources.items():
            folder, name = f"{length}_{kind}_v0_1", f"{source}{length}.x"  # a dot that starts no suffix
            turns = [{"from": "human", "value": "<image>\nWhat is shown?"}, {"from": "gpt", "value": "A street."}]
            record = {"id": f"{kind}{i}", "conversations": turns, "data_source": folder, "video": f"{name}.mp4"}
            write(root / folder / f"{length}_{kind}_oe_v0_1_qa_processed.json", [record] * 3)
            clip(root / folder / f"{name}.mp4", i)
            # The release names a feature file as the video, without the first folder.
            feature = root / "languagebind_feat" / name.split("/", 1)[1]
            published(feature.with_name(f"{feature.name}.pt"), *DENSE, dtype=torch.float16)


def write(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def clip(file: Path, i: int) -> None:
    """A third of a second or more, each another length."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_clip(file, frames=8 + 3 * i, size=(48, 32))


def published(file: Path, *shape: int, dtype: torch.dtype) -> None:
    """A feature file: one bare tensor, other numbers for each name, in little space.

    Every token differs from the others, being the one before moved by one.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    steps = [1]
    for size in reversed(shape[1:-1]):
        steps.insert(0, steps[0] * size)
    generator = torch.Generator().manual_seed(sum(file.name.encode()))
    numbers = torch.randn(steps[0] * shape[0] + shape[-1], generator=generator).to(dtype)
    torch.save(numbers.as_strided(shape, (*steps, 1)), file)
