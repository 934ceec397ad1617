"""The demo and the server on the other bases: their answers are those of `pave eval`, with patches and without."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from helpers.panda_folder import make_panda
from helpers.random_checkpoints import save_trained
from helpers.server_client import running
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
TOKENS = 4


class Trained(NamedTuple):
    """A patch on one of the bases."""

    folder: Path
    video: Path
    features: Path
    questions: dict[str, str]
    """Of the video, with what `pave eval` answers."""


@pytest.fixture(scope="module", params=MAKERS)
def trained(request: pytest.FixtureRequest, tiny_setup: TinySetup, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    kind, out = request.param, tmp_path_factory.mktemp("base")
    path = MAKERS[kind](_new(out / "base"))
    name, frames = kind.split()[0], FRAMES.get(kind, 4)
    base = BaseConfig(name=name, path=str(path), frames=frames, newline="no_token", dtype="float32")
    folder = save_trained(dataclasses.replace(make_config(*tiny_setup), base=base), out / "patch", 0)
    model, config = load.load_model(folder, None, device="cpu")
    evaluate.main(model, config, out / "eval", evaluate.Options(max_new_tokens=TOKENS, batch=2))
    said = {line["qid"]: line["text"] for line in map(json.loads, (out / "eval/predictions.jsonl").open())}
    asked = evaluate.load_questions(model, config, "test", {}, True).questions
    questions = {sideworld.Task().prompt(q): said[q.qid] for q in asked if Path(q.video).stem == "test_00000"}
    features = tiny_setup.data / "features/audio/test_00000.safetensors"
    return Trained(folder, tiny_setup.data / "videos/test_00000.mp4", features, questions)


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_the_demo_answers_as_eval_does(trained: Trained) -> None:
    model, config = load.load_model(trained.folder, None, device="cpu")
    assert len(trained.questions) > 1
    for question, text in trained.questions.items():
        files = {"audio": trained.features}
        assert demo.answer(model, config, trained.video, question, files, max_new_tokens=TOKENS) == text
    session = Session(model, config)
    scene = session.load_video(trained.video, {"audio": trained.features})
    question = next(iter(trained.questions))
    bare = Session(*load.load_model(trained.folder, None, base_only=True, device="cpu"))
    off = session.ask(scene, AnswerRequest(question, patches=(), max_new_tokens=TOKENS))
    assert off.text == bare.ask(bare.load_video(trained.video, {}), AnswerRequest(question, max_new_tokens=TOKENS)).text
    on = session.ask(scene, AnswerRequest(question, max_new_tokens=TOKENS))
    assert on.text == trained.questions[question] != off.text
    follow = session.ask(scene, AnswerRequest("Are you sure?", ((question, on.text),), max_new_tokens=TOKENS))
    assert follow.prompt_tokens > on.prompt_tokens
    assert follow.tokens


@pytest.mark.parametrize("trained", ["ppllava"], indirect=True)
def test_the_server_answers_as_eval_does(trained: Trained) -> None:
    pytest.importorskip("gradio", reason="needs the extra demo")
    model, config = load.load_model(trained.folder, None, device="cpu")
    with running(model, config, trained.folder, trained.video) as served:
        for question, text in trained.questions.items():
            files = {"video": served.video.open("rb"), "audio": trained.features.open("rb")}
            form: dict[str, Any] = {"question": question, "base": "true", "max_new_tokens": str(TOKENS)}
            got = served.client.post("/v1/answer", files=files, data=form).json()
            assert got["answer"]["text"] == text
            assert got["base"]["patches"] == {}
            assert len(got["facts"]["sides"]["audio"]["windows"]) == len(got["facts"]["frames"])
