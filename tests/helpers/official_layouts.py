"""A tiny data set for each official recipe: files named and shaped as the published ones, made-up content."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from helpers.media_files import pattern, write_clip
from helpers.paths import FIXTURES, read_json
from helpers.task_data import write

NUM_TRAIN, NUM_TEST = 4, 3
"""Questions for training and for evaluation."""
PARTS = {"train": NUM_TRAIN, "val": NUM_TEST}
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
        "egoexo4d_dp_data": egoexo,
        "enhanced_video": llava_video,
        "multiple_side_channels": avsd_with_dense_frames,
    }
    makers[name](root)
    return root


def avsd(root: Path) -> None:
    words = ("red", "warm", "loud", "near", "late", "new")
    rounds = [{"question": f"is it {word} ?", "answer": f"yes , it is {word} ."} for word in words]
    # Six rounds are one conversation of five and a rest.
    train = {f"Q7ZZ{i}": {"data": rounds[i:] + rounds[:i], "caption": "a", "summary": "b"} for i in range(NUM_TRAIN)}
    test = {f"T4YY{i}": rounds[: i + 1] for i in range(NUM_TEST)}
    dialogs = [{"image_id": video, "dialog": dialog} for video, dialog in test.items()]
    write(root / "avsd_train.json", train)
    file = root / "mock_test_set4DSTC10-AVSD_from_DSTC7_singref.json"
    write(file, {"type": "scene_aware_dialog", "version": "0.1", "dialogs": dialogs})
    for folder, videos in (("Charades_v1", train), ("Charades_vu17_test", test)):
        for i, video in enumerate(videos):
            clip(root / f"{folder}_480/{video}.mp4", i)
            published(root / f"{folder}_audio_imagebind_feat/{video}.pt", *AUDIO, dtype=torch.bfloat16)


def avsd_with_dense_frames(root: Path) -> None:
    avsd(root)
    for file in root.glob("Charades_*_480/*.mp4"):
        published(root / f"features/dense/{file.stem}.pt", *DENSE, dtype=torch.float16)


def avqa(root: Path) -> None:
    template = fixture("avqa/annotation/val_qa.json")[0] | {"multi_choice": ["kettle", "drum", "train", "dog"]}
    for part, count in PARTS.items():
        videos = [f"-{part}0_ab-9QxY_0000{i}0" for i in range(count)]  # names may start with a dash
        records = [
            template | {"id": i, "video_name": video, "question_text": f"What sounds {i}?", "answer": i % 4}
            for i, video in enumerate(videos)
        ]
        write(root / f"annotation/{part}_qa.json", records)
        for i, video in enumerate(videos):
            clip(root / f"video/{video}.mp4", i)
            published(root / f"features/audio/{video}.pt", *AUDIO, dtype=torch.bfloat16)


def music_avqa(root: Path) -> None:
    template = fixture("music_avqa/json_update/avqa-test.json")[1]
    kinds = (["Visual", "Counting"], ["Audio", "Comparative"], ["Audio-Visual", "Location"])
    for part, first in (("train", "00001"), ("test", "00002")):
        videos = [("", "sa")[i % 2] + f"{first}{i}" for i in range(len(kinds))]
        records = [
            template | {"video_id": video, "question_id": 7 + i, "type": json.dumps(kinds[i])}
            for i, video in enumerate(videos)
        ]
        write(root / f"json_update/avqa-{part}.json", records)
        for i, video in enumerate(videos):
            folder = ("MUSIC-AVQA-videos-Real", "MUCIS-AVQA-videos-Synthetic")[i % 2]
            clip(root / f"{folder}/{video}.mp4", i)
            published(root / f"features/audio/{video}.pt", *AUDIO, dtype=torch.bfloat16)


def scanqa(root: Path) -> None:
    template = fixture("scanqa/qa/ScanQA_v1.0_val.json")[0]
    for part, count in PARTS.items():
        records = []
        for i in range(count):
            scene = f"scene000{i % 2}"
            ids = {"scene_id": f"{scene}_00", "question_id": f"{part}-{scene}-{i}"}
            records.append(template | ids | {"question": f"What stands beside chair {i}?"})
        write(root / f"qa/ScanQA_v1.0_{part}.json", records)
    rooms(root)


def sqa3d(root: Path) -> None:
    template = fixture("sqa3d/ScanQA_format/SQA_test.json")[0]
    for part, count in (("train", NUM_TRAIN), ("test", NUM_TEST)):
        records = []
        for i in range(count):
            ids = {"scene_id": f"scene000{i % 2}_00", "question_id": 220602999990 + i}
            records.append(template | ids | {"question": f"Which side is door {i} on?"})
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
    template = fixture("egoexo/annotations/proficiency_demonstrator_val.json")["annotations"][0]
    levels = ("Novice", "Early Expert", "Intermediate Expert", "Late Expert")
    for part, count in PARTS.items():
        records = []
        for i in range(count):
            take = f"takes/{part}_bb_0{i}/frame_aligned_videos"
            paths = {"ego": f"{take}/aria01_214-1.mp4", "exo1": f"{take}/cam01.mp4"}
            ids = {"take_uid": f"0000-{part}-{i}", "video_paths": paths}
            records.append(template | ids | {"proficiency_score": levels[i % 4]})
            clip(root / f"{take}/downscaled/448/aria01_214-1.mp4", i)
            for camera in ("cam02", "cam01")[: 2 - i % 2]:
                published(root / f"features/exo/{take}/downscaled/448/{camera}.pt", *EXO, dtype=torch.bfloat16)
        write(root / f"annotations/proficiency_demonstrator_{part}.json", {"annotations": records})


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
            # An official feature file is named as the video, without the first folder.
            feature = root / "languagebind_feat" / name.split("/", 1)[1]
            published(feature.with_name(f"{feature.name}.pt"), *DENSE, dtype=torch.float16)


def fixture(path: str) -> Any:
    """Records of a small file in the true layout, of which some members are replaced."""
    return read_json(FIXTURES / path)


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
