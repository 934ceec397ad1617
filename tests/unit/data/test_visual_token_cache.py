"""Stored video tokens replace the videos, bit for bit, and spare decoding them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from helpers.tiny_model import TinySetup, make_config

from pave.checkpoints import build
from pave.config import Config
from pave.data import extraction
from pave.data.collate import collate
from pave.data.dataset import QuestionDataset
from pave.media import video
from pave.tasks import sideworld
from pave.types import UserError


@pytest.fixture(scope="module")
def stored(tiny_setup: TinySetup, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run on stored tokens of all clips of the small world."""
    out, run = tmp_path_factory.mktemp("store"), make_config(*tiny_setup, max_steps=1)
    settings = extraction.Settings(dtype="float32", workers=0)
    videos = {q.video for split in ("train", "test") for q in sideworld.Task().load(split, tiny_setup.data)}
    names = (f"{tiny_setup.data / video}\t{Path(video).with_suffix('')}\n" for video in sorted(videos))
    (out / "list.txt").write_text("".join(names))
    extraction.main("video", out / "list.txt", out, run.base.path, [f"frames={run.base.frames}"], settings)
    return dataclasses.replace(run, data=dataclasses.replace(run.data, video_tokens=str(out)))


def test_the_same_answers_without_the_videos(
    tiny_setup: TinySetup, stored: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = build.create(stored).eval()
    for patch in model.patches.values():
        torch.nn.init.normal_(patch.out_norm.weight)
    plain = dataclasses.replace(stored, data=dataclasses.replace(stored.data, video_tokens=""))
    questions = QuestionDataset(plain, model.base, "test", True)
    samples = [questions[i] for i in range(3)]
    monkeypatch.setattr(video, "read_clip", None)
    stored_questions = QuestionDataset(stored, model.base, "test", True)
    stored_samples = [stored_questions[i] for i in range(3)]
    assert stored_samples[0].pixels is not None
    assert stored_samples[0].pixels.ndim == 3
    with torch.no_grad():
        losses = [model(**collate(batch, 0))["loss"] for batch in (samples, stored_samples)]
    assert losses[0] == losses[1]


def test_tokens_of_other_frames_are_refused(stored: Config) -> None:
    base = build.create(stored).base
    other_frames = dataclasses.replace(stored, base=dataclasses.replace(stored.base, frames=stored.base.frames + 1))
    with pytest.raises(UserError, match=r"made of \d+ frames, base\.frames is \d+; extract it again"):
        QuestionDataset(other_frames, base, "test", True)[0]


def test_missing_tokens_say_what_to_run(stored: Config, tmp_path: Path) -> None:
    empty = dataclasses.replace(stored, data=dataclasses.replace(stored.data, video_tokens=str(tmp_path)))
    with pytest.raises(UserError, match=r"no such video tokens file .*run `pave extract video` first"):
        QuestionDataset(empty, build.create(empty).base, "test", True)
