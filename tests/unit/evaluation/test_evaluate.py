"""Evaluation goes on after any kill with any number of processes, mixes nothing, and counts what is missing."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.eval_runs import NUM_QUESTIONS, OPTIONS, Ready, change_options, count_answers, results
from helpers.media_files import write_clip
from helpers.tiny_model import TinySetup

from pave.checkpoints import load
from pave.cli import main
from pave.config import BaseConfig, Config
from pave.data.collate import collate
from pave.data.dataset import QuestionDataset
from pave.evaluation import evaluate, run_folder, score
from pave.inference import generation
from pave.tasks import sideworld
from pave.types import UserError

pytest_plugins = ["helpers.eval_runs"]


def with_data(config: Config, base: BaseConfig | None = None, **data: Any) -> Config:
    return dataclasses.replace(config, base=base or config.base, data=dataclasses.replace(config.data, **data))


def test_an_undisturbed_run(finished: Path, monkeypatch: pytest.MonkeyPatch, ready: Ready) -> None:
    lines = [json.loads(line) for line in (finished / run_folder.PREDICTIONS).read_text().splitlines()]
    data = QuestionDataset(ready[1], ready[0].base, "train", with_answers=False)
    assert [line["qid"] for line in lines] == [q.qid for q in data.questions]
    assert len({line["text"] for line in lines}) >= 3
    result = json.loads((finished / run_folder.METRICS).read_text())
    empty = sum(not line["text"] for line in lines)
    assert result["coverage"] == {"questions": 20, "asked": 20, "answered": 20, "missing": 0, "empty": empty}
    assert result["prompts"] == score.prompts_hash(sideworld.Task(), data.questions)
    assert (result["split"], result["limit"], result["probes"]) == ("train", None, {"audio": ""})
    # Nothing is asked twice.
    calls = count_answers(monkeypatch)
    before = results(finished)
    evaluate.main(*ready, finished, OPTIONS)
    assert calls == []
    assert results(finished) == before


def test_each_video_is_read_once(ready: Ready, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    indices: list[int] = []
    get = QuestionDataset.__getitem__
    monkeypatch.setattr(QuestionDataset, "__getitem__", lambda self, i: (indices.append(i), get(self, i))[1])
    evaluate.main(*ready, tmp_path, OPTIONS)
    assert sorted(indices) == [0, 5, 10, 15]


def test_videos_of_several_lengths_have_frames_by_their_length(
    ready: Ready, tiny_setup: TinySetup, tmp_path: Path
) -> None:
    """Four at a time, with one cut short: every answer is that to the video alone."""
    root = shutil.copytree(tiny_setup.data, tmp_path / "data")
    short = write_clip(tmp_path / "short.mp4", frames=50, size=(64, 64))
    shutil.copy(short, root / "videos/train_00001.mp4")
    model, config = ready
    base = dataclasses.replace(config.base, frames=6, fps=1.0)
    config = with_data(config, base, root=str(root))
    samples = QuestionDataset(config, model.base, "train", with_answers=True)
    assert [len(samples[i].pixels) for i in (0, 5, 10)] == [6, 2, 6]  # type: ignore[arg-type]
    pad_id = model.base.tokenizer.pad_token_id
    both = model(**collate([samples[0], samples[5]], pad_id))["logits"]
    alone = [model(**collate([samples[i]], pad_id))["logits"] for i in (0, 5)]
    torch.testing.assert_close(both, torch.cat(alone), atol=1e-4, rtol=1e-4)
    evaluate.main(model, config, tmp_path / "four", OPTIONS)
    evaluate.main(model, config, tmp_path / "one", change_options(batch=1))
    assert results(tmp_path / "four")[0] == results(tmp_path / "one")[0]


@pytest.mark.parametrize(
    ("base", "data", "message"),
    [
        ({"fps": 1.0}, {"video_tokens": "videos"}, r"train_00000.* set base\.fps=0 base\.frame_sampling=uniform"),
        ({"frame_sampling": "native"}, {}, r"llava_onevision has no rule .* set base\.frame_sampling=uniform"),
    ],
)
def test_refused_frame_settings(base: dict[str, Any], data: dict[str, str], message: str, ready: Ready) -> None:
    model, config = ready
    config = with_data(config, dataclasses.replace(config.base, **base), **data)
    with pytest.raises(UserError, match=message):
        QuestionDataset(config, model.base, "train", with_answers=True, check_files=False)[0]


def test_killed_anywhere_with_any_number_of_processes(
    ready: Ready, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(0)
    for trial in range(4):
        out = tmp_path / str(trial)
        with monkeypatch.context() as patch:
            calls = count_answers(patch)
            for _ in range(5):
                n = rng.randint(1, 3)
                with contextlib.suppress(KeyboardInterrupt), patch.context() as killing:
                    killing.setattr(generation, "answers", interrupt_after(generation.answers, rng.randint(0, 1)))
                    evaluate.main(*ready, out, change_options(part=(rng.randrange(n), n), batch=rng.choice((1, 4))))
                cut_last_line(out, rng)
            n = rng.randint(1, 3)
            texts = [evaluate.main(*ready, out, change_options(part=(i, n))) for i in rng.sample(range(n), n)]
        assert "coverage: 20 of 20" in texts[-1]
        assert results(out) == results(finished)
        # Each cut costs the answers of one video at most.
        assert NUM_QUESTIONS <= sum(calls) <= NUM_QUESTIONS + 5 * 5


def interrupt_after(answers: Callable[..., Any], num_batches: int) -> Callable[..., Any]:
    remaining = iter(range(num_batches))

    def answer_or_end(*arguments: Any) -> Any:
        if next(remaining, None) is None:
            raise KeyboardInterrupt
        return answers(*arguments)

    return answer_or_end


def cut_last_line(out: Path, rng: random.Random) -> None:
    """As a kill in the middle of a write: the newest part ends somewhere in its last line, or a new one begins."""
    file = max((out / run_folder.PARTS).iterdir(), key=lambda file: file.stat().st_mtime_ns)
    text = file.read_bytes()
    start = text.removesuffix(b"\n").rfind(b"\n") + 1
    file.write_bytes(text[: rng.randint(start, len(text))] if text else b'{"qid": "tra')


def test_killed_by_the_system_after_any_number_of_answers(
    ready: Ready, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child says through a pipe that an answer is under way, then waits to be killed."""
    counts: list[int] = []
    for num_answered in (0, 1, 0, 2, 1, 0):
        reader, writer = os.pipe()
        with monkeypatch.context() as patch:
            patch.setattr(generation, "answers", pause_after(generation.answers, num_answered, writer))
            child = fork(lambda: evaluate.main(*ready, tmp_path, change_options(batch=1)))
        os.close(writer)
        os.read(reader, 1)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reader)
        counts.append(len(run_folder.gather(tmp_path)))
    assert counts == [0, 5, 5, 15, 20, 20]
    children = [fork(lambda i=i: evaluate.main(*ready, tmp_path, change_options(part=(i, 2)))) for i in range(2)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    assert results(tmp_path) == results(finished)


def pause_after(answers: Callable[..., Any], num_batches: int, writer: int) -> Callable[..., Any]:
    remaining = iter(range(num_batches))

    def answer_or_pause(*arguments: Any) -> Any:
        if next(remaining, None) is None:
            os.write(writer, b".")
            signal.pause()
        return answers(*arguments)

    return answer_or_pause


def fork(work: Callable[[], Any]) -> int:
    """Run in a child, which leaves nothing of the test behind; returns its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        torch.set_num_threads(1)
        work()
        code = 0
    finally:
        os._exit(code)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_new_tokens": 4}, r"decoding\.max_new_tokens was 6, is now 4;"),
        ({"perturb": ["audio=freeze"]}, r"sides\.audio\.probe was , is now freeze;"),
        ({"shuffle_sides": True}, r"sides\.audio\.probe was , is now shuffle;"),
        ({"split": "test"}, r"prompts was .*; questions was 20, is now 15; split was train, is now test;"),
    ],
)
def test_answers_of_other_options_are_not_mixed(
    ready: Ready, finished: Path, change: dict[str, Any], message: str
) -> None:
    before = results(finished)
    with pytest.raises(UserError, match=message):
        evaluate.main(*ready, finished, change_options(**change))
    assert results(finished) == before


def test_another_model_or_prompt_is_not_mixed(
    ready: Ready, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, config = ready
    base = dataclasses.replace(config.base, frames=8)
    with pytest.raises(UserError, match=r"base\.frames was 4, is now 8; choose another folder or delete "):
        evaluate.main(model, dataclasses.replace(config, base=base), finished, OPTIONS)
    shutil.copytree(finished / run_folder.PARTS, tmp_path / run_folder.PARTS)
    with pytest.raises(UserError, match=r"manifest\.json: missing, though there are answers"):
        evaluate.main(model, config, tmp_path, OPTIONS)
    model.set_patches({"audio": 0.5})
    with pytest.raises(UserError, match=r"sides\.audio\.weight was 1\.0, is now 0\.5;"):
        evaluate.main(model, config, finished, OPTIONS)
    model.set_patches({"audio": 1.0})
    with monkeypatch.context() as patch:
        patch.setattr(sideworld.Task, "prompt", lambda self, question: question.text)
        with pytest.raises(UserError, match="prompts was"):
            evaluate.main(model, config, finished, OPTIONS)
    lora = next(p for name, p in model.named_parameters() if "lora_A" in name)
    for tensor in (model.patches["audio"].out_norm.weight, lora, model.base.llm.norm.weight):
        with torch.no_grad():
            tensor[0] += 1e-3
        with pytest.raises(UserError, match="weights was"):
            evaluate.main(model, config, finished, OPTIONS)
        with torch.no_grad():
            tensor[0] -= 1e-3


def test_limit_is_marked_and_the_rest_is_asked_later(
    ready: Ready, finished: Path, tmp_path: Path, tiny_setup: TinySetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_answers(monkeypatch)
    text = evaluate.main(*ready, tmp_path, change_options(limit=7))
    assert "ONLY THE FIRST 7 of 20 questions" in text
    assert "coverage: 7 of 7 questions answered" in text
    result = json.loads((tmp_path / run_folder.METRICS).read_text())
    assert (result["limit"], result["coverage"]["asked"], result["metrics"]["n"]) == (7, 7, 7)
    file = tmp_path / run_folder.PREDICTIONS
    assert file.read_text() in (finished / run_folder.PREDICTIONS).read_text()
    with pytest.raises(UserError, match=r"13 of 20 questions have no answer, as 'train_00001\."):
        score.score(file, "sideworld", "train", tiny_setup.data)
    assert score.score(file, "sideworld", "train", tiny_setup.data, limit=7) == result
    evaluate.main(*ready, tmp_path, OPTIONS)
    assert sum(calls) == NUM_QUESTIONS
    assert results(tmp_path) == results(finished)
    with pytest.raises(UserError, match="--limit 0: expected one"):
        evaluate.main(*ready, tmp_path, change_options(limit=0))


def test_files_that_are_missing_or_mended_later(
    ready: Ready, finished: Path, tmp_path: Path, tiny_setup: TinySetup
) -> None:
    model, config = ready
    root = shutil.copytree(tiny_setup.data, tmp_path / "data")
    config = with_data(config, root=str(root))
    clip, features = "videos/train_00001.mp4", "features/audio/train_00002.safetensors"
    (root / clip).write_bytes(b"nothing")
    (root / features).unlink()
    out = tmp_path / "out"
    with pytest.raises(UserError, match="1 of 8 files are missing"):
        evaluate.main(model, config, out, OPTIONS)
    text = evaluate.main(model, config, out, change_options(allow_missing=True, keep_going=True))
    assert re.search(r"coverage: 10 of 20 questions answered, .*5 missing, 5 unreadable$", text)
    for name in (clip, features):
        shutil.copy(tiny_setup.data / name, root / name)
    evaluate.main(model, config, out, OPTIONS)
    assert results(out) == results(finished)


def test_processes_and_perturbations_from_the_command_line(
    ckpt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"eval --ckpt {ckpt} --split train --workers 0 --max-new-tokens 3 --device cpu"
    line += f" --perturb audio=noise:10dB --out {tmp_path}"
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        assert main.main(line.split()) == 0
        text = capsys.readouterr().out
        assert ("10 of 20 are still missing" in text) == (rank == "1")
    assert "side-channel audio: noise:10dB" in text
    assert sorted(f.name[:6] for f in (tmp_path / run_folder.PARTS).iterdir()) == ["0-of-2", "1-of-2"]
    assert json.loads((tmp_path / run_folder.METRICS).read_text())["probes"] == {"audio": "noise:10dB"}
    assert json.loads((tmp_path / run_folder.MANIFEST).read_text())["sides"]["audio"]["probe"] == "noise:10dB"


def test_a_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert load.choose_device(None) == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert load.choose_device(None) == load.choose_device("cuda") == "cuda:3"
    assert load.choose_device("cpu") == "cpu"


def test_like_lengths_share_a_batch() -> None:
    groups, lengths = [[0], [1, 2], [3], [4], [5, 6, 7, 8], [9]], [5, 9, 1, 7, 6, 2, 2, 2, 2, 1]
    assert evaluate.make_batches(groups, lengths, 3) == [[1, 2], [3, 0], [4], [5]]
    assert evaluate.make_batches([], lengths, 3) == []
