"""Sessions, which demo and server use, on the other bases: answers as `pave eval`, with patches and without."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers.panda_folder import make_panda
from helpers.random_checkpoints import save_trained
from helpers.tiny_bases import make_original, make_port, make_ppllava, make_qwen
from helpers.tiny_model import TinySetup, make_config

from pave.checkpoints import load
from pave.config import BaseConfig
from pave.evaluation import evaluate
from pave.inference import demo
from pave.inference.session import AnswerRequest, Session
from pave.tasks import sideworld

MAKERS: dict[str, Callable[[Path], Path]] = {
    "ppllava": make_ppllava,
    "video_llava port": make_port,
    "video_llava original": make_original,
    "qwen2_5_vl": make_qwen,
    "video_panda": make_panda,
}
FRAMES = {"video_llava port": 8, "video_llava original": 8}
NEW_TOKENS = 4


class Trained(NamedTuple):
    """A patch on one of the bases."""

    folder: Path
    video: Path
    features: Path
    questions: dict[str, str]
    """Questions about the video, with the answers of `pave eval`."""


@pytest.fixture(scope="module", params=MAKERS)
def trained(request: pytest.FixtureRequest, tiny_setup: TinySetup, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    kind, out = request.param, tmp_path_factory.mktemp("base")
    (out / "base").mkdir()
    path = MAKERS[kind](out / "base")
    name, frames = kind.split()[0], FRAMES.get(kind, 4)
    base = BaseConfig(name=name, path=str(path), frames=frames, newline="no_token", dtype="float32")
    folder = save_trained(dataclasses.replace(make_config(*tiny_setup), base=base), out / "patch", 0)

    model, config = load.load_model(folder, None, device="cpu")
    evaluate.main(model, config, out / "eval", evaluate.Options(max_new_tokens=NEW_TOKENS, batch=2))
    answers = {line["qid"]: line["text"] for line in map(json.loads, (out / "eval/predictions.jsonl").open())}
    task = sideworld.Task()
    questions = {
        task.prompt(question): answers[question.qid]
        for question in task.load("test", tiny_setup.data)
        if Path(question.video).stem == "test_00000"
    }
    features = tiny_setup.data / "features/audio/test_00000.safetensors"
    return Trained(folder, tiny_setup.data / "videos/test_00000.mp4", features, questions)


def test_the_demo_answers_as_eval_does(trained: Trained) -> None:
    model, config = load.load_model(trained.folder, None, device="cpu")
    files = {"audio": trained.features}
    assert len(trained.questions) > 1
    for question, text in trained.questions.items():
        assert demo.answer(model, config, trained.video, question, files, max_new_tokens=NEW_TOKENS) == text

    question, text = next(iter(trained.questions.items()))
    session = Session(model, config)
    loaded = session.load_video(trained.video, files)
    patched = session.ask(loaded, AnswerRequest(question, max_new_tokens=NEW_TOKENS))
    switched_off = session.ask(loaded, AnswerRequest(question, patches=(), max_new_tokens=NEW_TOKENS))
    bare_model, bare_config = load.load_model(trained.folder, None, base_only=True, device="cpu")
    bare_text = demo.answer(bare_model, bare_config, trained.video, question, {}, max_new_tokens=NEW_TOKENS)
    assert switched_off.text == bare_text
    assert patched.text == text != bare_text

    history = ((question, text),)
    follow_up = session.ask(loaded, AnswerRequest("Are you sure?", history, max_new_tokens=NEW_TOKENS))
    assert follow_up.prompt_tokens > patched.prompt_tokens
    assert follow_up.tokens
