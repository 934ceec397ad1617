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
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.eval_runs import ASKED, OPTIONS, count, other, results
from helpers.media_files import write_clip
from helpers.tiny_model import TinySetup

from pave.checkpoints import load
from pave.cli import main
from pave.config import Config
from pave.data.collate import collate
from pave.data.dataset import QuestionDataset
from pave.evaluation import evaluate, run_folder, score
from pave.inference import generation
from pave.models.patched_model import PatchedModel
from pave.tasks import sideworld
from pave.types import UserError

pytest_plugins = ["helpers.eval_runs"]


def test_an_undisturbed_run(whole: Path, monkeypatch: pytest.MonkeyPatch, ready: tuple[PatchedModel, Config]) -> None:
    lines = [json.loads(line) for line in (whole / run_folder.PREDICTIONS).read_text().splitlines()]
    data = QuestionDataset(ready[1], ready[0].base, "train", with_answers=False)
    assert [line["qid"] for line in lines] == [q.qid for q in data.questions]
    assert len({line["text"] for line in lines}) >= 3
    result = json.loads((whole / run_folder.METRICS).read_text())
    empty = sum(not line["text"] for line in lines)
    assert result["coverage"] == {"questions": 20, "asked": 20, "answered": 20, "missing": 0, "empty": empty}
    assert result["prompts"] == score.prompts_hash(sideworld.Task(), data.questions)
    assert (result["split"], result["limit"], result["probes"]) == ("train", None, {"audio": ""})
    # Nothing is asked twice.
    calls = count(monkeypatch)
    before = results(whole)
    evaluate.main(*ready, whole, OPTIONS)
    assert calls == []
    assert results(whole) == before


def test_each_video_is_read_once(
    ready: tuple[PatchedModel, Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    get = QuestionDataset.__getitem__
    monkeypatch.setattr(QuestionDataset, "__getitem__", lambda self, index: (read.append(index), get(self, index))[1])
    evaluate.main(*ready, tmp_path, OPTIONS)
    assert sorted(read) == [0, 5, 10, 15]


def test_videos_of_several_lengths_have_frames_by_their_length(
    ready: tuple[PatchedModel, Config], tiny_setup: TinySetup, tmp_path: Path
) -> None:
    """Four at a time, with one cut short: every answer is that to the video alone."""
    root = shutil.copytree(tiny_setup.data, tmp_path / "data")
    short = root / "videos/train_00001.mp4"
    shutil.copy(write_clip(tmp_path / "short.mp4", frames=50, size=(64, 64)), short)
    model, config = ready
    base = dataclasses.replace(config.base, frames=6, fps=1.0)
    config = dataclasses.replace(config, base=base, data=dataclasses.replace(config.data, root=str(root)))
    samples = QuestionDataset(config, model.base, "train", with_answers=True)
    assert [len(samples[i].pixels) for i in (0, 5, 10)] == [6, 2, 6]  # type: ignore[arg-type]
    batch = collate([samples[0], samples[5]], model.base.tokenizer.pad_token_id)
    both = model(**batch)["logits"]
    alone = [model(**collate([samples[i]], model.base.tokenizer.pad_token_id))["logits"] for i in (0, 5)]
    torch.testing.assert_close(both, torch.cat(alone), atol=1e-4, rtol=1e-4)
    evaluate.main(model, config, tmp_path / "four", OPTIONS)
    evaluate.main(model, config, tmp_path / "one", other(batch=1))
    assert results(tmp_path / "four")[0] == results(tmp_path / "one")[0]
    stored = dataclasses.replace(config, data=dataclasses.replace(config.data, video_tokens="videos"))
    with pytest.raises(UserError, match=r"train_00000.* set base\.fps=0 base\.choice=even"):
        QuestionDataset(stored, model.base, "train", with_answers=True, check_files=False)[0]
    own = dataclasses.replace(config, base=dataclasses.replace(base, frame_sampling="native"))
    with pytest.raises(UserError, match=r"llava_onevision has no rule of its own .* set base\.choice=even"):
        QuestionDataset(own, model.base, "train", with_answers=True)[0]
    slow = dataclasses.replace(config, base=dataclasses.replace(base, fps=-1.0))
    with pytest.raises(UserError, match=r"base\.fps=-1"):
        QuestionDataset(slow, model.base, "train", with_answers=True)[0]


def test_killed_anywhere_with_any_number_of_processes(
    ready: tuple[PatchedModel, Config], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(0)
    for trial in range(4):
        out = tmp_path / str(trial)
        with monkeypatch.context() as patch:
            asked = count(patch)
            for _ in range(5):
                n = rng.randint(1, 3)
                with contextlib.suppress(KeyboardInterrupt), patch.context() as killing:
                    killing.setattr(generation, "answers", interrupted(generation.answers, rng.randint(0, 1)))
                    evaluate.main(*ready, out, other(part=(rng.randrange(n), n), batch=rng.choice((1, 4))))
                tear(out, rng)
            n = rng.randint(1, 3)
            said = [evaluate.main(*ready, out, other(part=(i, n))) for i in rng.sample(range(n), n)]
        assert "coverage: 20 of 20" in said[-1]
        assert results(out) == results(whole)
        # Each tear costs the answers of one video at most.
        assert ASKED <= sum(asked) <= ASKED + 5 * 5


def interrupted(answers: Callable[..., Any], after: int) -> Callable[..., Any]:
    """Answers to so many batches, then the end."""
    left = iter(range(after))

    def answer_or_end(*arguments: Any) -> Any:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return answers(*arguments)

    return answer_or_end


def tear(out: Path, rng: random.Random) -> None:
    """As a kill in the middle of a write: the newest part ends somewhere in its last line, or a new one begins."""
    file = max((out / run_folder.PARTS).iterdir(), key=lambda file: file.stat().st_mtime_ns)
    text = file.read_bytes()
    whole = text.removesuffix(b"\n").rfind(b"\n") + 1
    file.write_bytes(text[: rng.randint(whole, len(text))] if text else b'{"qid": "tra')


def test_killed_twenty_times_by_the_system(
    ready: tuple[PatchedModel, Config], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, answers = random.Random(1), generation.answers

    def slow(*arguments: Any) -> Any:
        time.sleep(0.05)
        return answers(*arguments)

    monkeypatch.setattr(generation, "answers", slow)
    found: list[int] = []
    for _ in range(20):
        n = rng.randint(1, 3)
        child = forked(lambda n=n: evaluate.main(*ready, tmp_path, other(part=(rng.randrange(n), n), batch=1)))
        time.sleep(rng.uniform(0.05, 0.5))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found.append(len(run_folder.gather(tmp_path)))
    assert found == sorted(found)
    children = [forked(lambda i=i: evaluate.main(*ready, tmp_path, other(part=(i, 2)))) for i in range(2)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    assert results(tmp_path) == results(whole)


def forked(work: Callable[[], Any]) -> int:
    """Run in a child, which leaves nothing of the test behind; returns its number."""
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
    ("change", "named"),
    [
        ({"max_new_tokens": 4}, r"decoding\.max_new_tokens was 6, is now 4;"),
        ({"perturb": ["audio=freeze"]}, r"sides\.audio\.probe was , is now freeze;"),
        ({"shuffle_sides": True}, r"sides\.audio\.probe was , is now shuffle;"),
        ({"split": "test"}, r"prompts was .*; questions was 20, is now 15; split was train, is now test;"),
    ],
)
def test_answers_found_otherwise_are_not_mixed(
    ready: tuple[PatchedModel, Config], whole: Path, change: dict[str, Any], named: str
) -> None:
    before = results(whole)
    with pytest.raises(UserError, match=named):
        evaluate.main(*ready, whole, other(**change))
    assert results(whole) == before


def test_another_model_or_prompt_is_not_mixed(
    ready: tuple[PatchedModel, Config], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, config = ready
    base = dataclasses.replace(config.base, frames=8)
    with pytest.raises(UserError, match=r"base\.frames was 4, is now 8; choose another folder or delete "):
        evaluate.main(model, dataclasses.replace(config, base=base), whole, OPTIONS)
    shutil.copytree(whole / run_folder.PARTS, tmp_path / run_folder.PARTS)
    with pytest.raises(UserError, match=r"manifest\.json: missing, though there are answers"):
        evaluate.main(model, config, tmp_path, OPTIONS)
    model.set_patches({"audio": 0.5})
    with pytest.raises(UserError, match=r"sides\.audio\.weight was 1\.0, is now 0\.5;"):
        evaluate.main(model, config, whole, OPTIONS)
    model.set_patches({"audio": 1.0})
    with monkeypatch.context() as patch:
        patch.setattr(sideworld.Task, "prompt", lambda self, question: question.text)
        with pytest.raises(UserError, match="prompts was"):
            evaluate.main(model, config, whole, OPTIONS)
    same = load.fingerprint(model)
    for tensor in (
        model.patches["audio"].out_norm.weight,
        next(p for name, p in model.named_parameters() if "lora_A" in name),
        model.base.llm.norm.weight,
    ):
        with torch.no_grad():
            tensor[0] += 1e-3
        assert load.fingerprint(model) != same
        with pytest.raises(UserError, match="weights was"):
            evaluate.main(model, config, whole, OPTIONS)
        with torch.no_grad():
            tensor[0] -= 1e-3


def test_limit_is_marked_and_the_rest_is_asked_later(
    ready: tuple[PatchedModel, Config],
    whole: Path,
    tmp_path: Path,
    tiny_setup: TinySetup,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = count(monkeypatch)
    text = evaluate.main(*ready, tmp_path, other(limit=7))
    assert "ONLY THE FIRST 7 of 20 questions" in text
    assert "coverage: 7 of 7 questions answered" in text
    result = json.loads((tmp_path / run_folder.METRICS).read_text())
    assert (result["limit"], result["coverage"]["asked"], result["metrics"]["n"]) == (7, 7, 7)
    assert (tmp_path / run_folder.PREDICTIONS).read_text() in (whole / run_folder.PREDICTIONS).read_text()
    with pytest.raises(UserError, match=r"13 of 20 questions have no answer, as 'train_00001\."):
        score.score(tmp_path / run_folder.PREDICTIONS, "sideworld", "train", tiny_setup.data)
    assert score.score(tmp_path / run_folder.PREDICTIONS, "sideworld", "train", tiny_setup.data, limit=7) == result
    evaluate.main(*ready, tmp_path, OPTIONS)
    assert sum(calls) == ASKED
    assert results(tmp_path) == results(whole)
    with pytest.raises(UserError, match="--limit 0: expected one"):
        evaluate.main(*ready, tmp_path, other(limit=0))


def test_files_that_are_missing_or_mended_later(
    ready: tuple[PatchedModel, Config], whole: Path, tmp_path: Path, tiny_setup: TinySetup
) -> None:
    model, config = ready
    root = tmp_path / "data"
    shutil.copytree(tiny_setup.data, root)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, root=str(root)))
    clip, features = root / "videos/train_00001.mp4", root / "features/audio/train_00002.safetensors"
    clip.write_bytes(b"nothing")
    features.unlink()
    out = tmp_path / "out"
    with pytest.raises(UserError, match="1 of 8 files are missing"):
        evaluate.main(model, config, out, OPTIONS)
    text = evaluate.main(model, config, out, other(allow_missing=True, keep_going=True))
    assert re.search(r"coverage: 10 of 20 questions answered, .*5 missing, 5 unreadable$", text)
    shutil.copy(tiny_setup.data / "videos/train_00001.mp4", clip)
    shutil.copy(tiny_setup.data / "features/audio/train_00002.safetensors", features)
    evaluate.main(model, config, out, OPTIONS)
    assert results(out) == results(whole)


def test_processes_and_perturbations_from_the_command_line(
    ckpt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", "--ckpt", ckpt, "--split", "train", "--workers", "0", "--max-new-tokens", "3", "--device", "cpu"]
    words += ["--perturb", "audio=noise:10dB", "--out", tmp_path]
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        assert main.main([str(word) for word in words]) == 0
        said = capsys.readouterr().out
        assert ("10 of 20 are still missing" in said) == (rank == "1")
    assert "side-channel audio: noise:10dB" in said
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
    groups, length = [[0], [1, 2], [3], [4], [5, 6, 7, 8], [9]], [5, 9, 1, 7, 6, 2, 2, 2, 2, 1]
    assert evaluate.make_batches(groups, length, 3) == [[1, 2], [3, 0], [4], [5]]
    assert evaluate.make_batches([], length, 3) == []
