"""Under lmms-eval our model says what it says under `pave eval`; here with a stand-in of lmms-eval 0.7.3's api."""

from __future__ import annotations

import abc
import dataclasses
import importlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from helpers.eval_runs import OPTIONS, Ready, count_answers
from helpers.tiny_model import TinySetup

from pave.data.dataset import QuestionDataset
from pave.evaluation import evaluate, run_folder
from pave.types import UserError

pytest_plugins = ["helpers.eval_runs"]

TASK, SPLIT = "heard", "test"
GREEDY = {"max_new_tokens": OPTIONS.max_new_tokens, "temperature": 0.0, "top_p": 1.0, "num_beams": 1}
GREEDY |= {"do_sample": False, "until": ["\n\n"]}
"""As lmms-eval passes what videomme, mvbench and mlvu ask for."""


class Lmms(abc.ABC):
    """lmms_eval.api.model.lmms, the part that a model meets."""

    is_simple = True

    def __init__(self) -> None:
        self._rank = 0
        self.task_dict: dict[str, Any] = {}

    @property
    def rank(self) -> int:
        return self._rank

    @abc.abstractmethod
    def loglikelihood(self, requests: Any) -> Any: ...

    @abc.abstractmethod
    def generate_until(self, requests: Any) -> Any: ...

    @abc.abstractmethod
    def generate_until_multi_round(self, requests: Any) -> Any: ...


@dataclass
class Instance:
    """lmms_eval.api.instance.Instance, the part that a model meets."""

    request_type: str
    arguments: tuple[Any, ...]
    idx: int = 0
    metadata: dict[str, Any] = field(default_factory=dict)
    task_name: str = TASK

    @property
    def args(self) -> tuple[Any, ...]:
        return self.arguments


@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """pave.evaluation.lmms_eval_plugin on the stand-in."""
    for name, content in {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.model": {"lmms": Lmms},
        "lmms_eval.models": {},
        "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
    }.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    yield importlib.import_module("pave.evaluation.lmms_eval_plugin")
    del sys.modules["pave.evaluation.lmms_eval_plugin"]


@pytest.fixture
def load(plugin: ModuleType, ckpt: Path, tiny_setup: TinySetup) -> Callable[..., Any]:
    """The class that lmms-eval finds, made from --model_args on the small world's documents."""

    def make(**model_args: Any) -> Any:
        module, name = plugin.manifest().simple_class_path.rsplit(".", 1)
        args = {"ckpt": str(ckpt), "device": "cpu", "batch_size": "4", "workers": 0, **model_args}
        model = getattr(importlib.import_module(module), name)(**args)
        model.model.base.hf.generation_config.repetition_penalty = 1.3
        data = QuestionDataset(model.config, model.model.base, "train", with_answers=False, check_files=False)
        model.task_dict[TASK] = {
            SPLIT: [{"video": str(tiny_setup.data / q.video), "question": data.task.prompt(q)} for q in data.questions]
        }
        return model

    return make


def make_request(model: Any, doc_id: int, arguments: dict[str, Any] = GREEDY, show: Any = None) -> Instance:
    doc = model.task_dict[TASK][SPLIT][doc_id]
    show = show or (lambda doc: [doc["video"]])
    return Instance("generate_until", (doc["question"], dict(arguments), show, doc_id, TASK, SPLIT))


def read_texts(run: Path) -> list[str]:
    return [json.loads(line)["text"] for line in (run / run_folder.PREDICTIONS).read_text().splitlines()]


@pytest.mark.parametrize(("batch", "workers"), [("1", 0), ("3", 1)])
def test_the_answers_of_pave_eval_in_the_order_of_the_requests(
    batch: str, workers: int, load: Callable[..., Any], finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, expected = load(batch_size=batch, workers=workers), read_texts(finished)
    order = [7, 0, 19, 7, *range(20)]
    calls = count_answers(monkeypatch)
    assert model.generate_until([make_request(model, i) for i in order]) == [expected[i] for i in order]
    assert len(set(expected)) > 3
    assert len(calls) == {"1": 4, "3": 2}[batch], "each of the four videos is read once"


def test_a_base_that_sees_a_video_for_each_question_reads_it_for_each(
    load: Callable[..., Any], finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(batch_size="1")
    model.model.base.prompt_conditioned = True
    calls = count_answers(monkeypatch)
    assert model.generate_until([make_request(model, i) for i in (0, 1, 0)]) == [
        read_texts(finished)[i] for i in (0, 1, 0)
    ]
    assert calls == [2, 1], "equal questions share"


def test_features_are_those_of_the_document_or_of_most_of_the_path(
    load: Callable[..., Any], finished: Path, tiny_setup: TinySetup, tmp_path: Path
) -> None:
    model = load(**{"sides.audio.features": str(tmp_path)})
    video = Path(model.task_dict[TASK][SPLIT][5]["video"])
    with pytest.raises(
        UserError, match=rf"^{tmp_path}/{video.stem}.safetensors: no such audio.*no {TASK}/5 .*sides.audio.features="
    ):
        model.generate_until([make_request(model, 5)])
    stored = sorted((tiny_setup.data / "features/audio").iterdir(), key=lambda file: file.stem != video.stem)
    answers = []
    for place, file in [(video.stem, stored[1]), (f"videos/{video.stem}", stored[0]), (f"{TASK}/5", stored[2])]:
        new = tmp_path / f"{place}.safetensors"
        new.parent.mkdir(exist_ok=True)
        shutil.copy(file, new)
        assert model._find_features("audio", video, f"{TASK}/5") == new
        answers.append(model.generate_until([make_request(model, i) for i in range(5, 10)]))
    assert answers[1] == read_texts(finished)[5:10]
    assert answers[0] != answers[1] != answers[2]


def test_a_document_without_features_goes_without_where_that_is_allowed(
    load: Callable[..., Any], ready: Ready, finished: Path, tmp_path: Path
) -> None:
    model, config = ready
    deaf = dataclasses.replace(config, data=dataclasses.replace(config.data, sides=[]))
    evaluate.main(model, deaf, tmp_path / "deaf", OPTIONS)
    model = load(**{"data.missing": "absent", "sides.audio.features": "nowhere"})
    texts = model.generate_until([make_request(model, i) for i in range(20)])
    assert texts == read_texts(tmp_path / "deaf") != read_texts(finished)


def test_length_and_end_are_those_of_each_request(load: Callable[..., Any], finished: Path) -> None:
    model, text = load(), max(read_texts(finished), key=len)
    i, end = read_texts(finished).index(text), text[-3:]
    kinds = [{}, {"max_new_tokens": 1}, {"until": [end]}, {"until": end}, {"until": []}, {"until": None}]
    answers = model.generate_until([make_request(model, i, {**GREEDY, **kind}) for kind in kinds])
    cut = text.split(end)[0].strip()
    assert answers == [text, answers[1], cut, cut, text, text]
    assert text.startswith(answers[1])
    assert len(answers[1]) < len(text) > len(cut)


@pytest.mark.parametrize(
    "arguments", [{}, {"temperature": 0, "top_p": None}, {"do_sample": False, "temperature": 1.0, "num_beams": 1}]
)
def test_greedy_arguments_are_accepted(arguments: dict[str, Any], plugin: ModuleType) -> None:
    assert plugin._parse_decoding("here", arguments) == (plugin.MAX_NEW_TOKENS, ())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"do_sample": True, "temperature": 0}, "sampling or beams"),
        ({"temperature": 0.7}, "sampling or beams.*--gen_kwargs do_sample=False,temperature=0"),
        ({"num_beams": 3, "do_sample": False}, "sampling or beams"),
        ({"image_aspect_ratio": "pad"}, "argument 'image_aspect_ratio' is not supported"),
        ({"max_new_tokens": 0}, "max_new_tokens=0, expected"),
        ({"max_new_tokens": "16"}, "max_new_tokens=16, expected"),
    ],
)
def test_arguments_that_would_be_ignored_are_refused(
    arguments: dict[str, Any], message: str, load: Callable[..., Any]
) -> None:
    model = load()
    with pytest.raises(UserError, match=f"^task {TASK}, document 3: .*{message}"):
        model.generate_until([make_request(model, 0), make_request(model, 3, arguments)])


@pytest.mark.parametrize("visuals", [[], None, [object()], ["a.mp4", "b.mp4"]])
def test_only_one_video_a_question(visuals: Any, load: Callable[..., Any]) -> None:
    model = load()
    with pytest.raises(UserError, match=r"document 0: shows .*expected the path of one video"):
        model.generate_until([make_request(model, 0, show=lambda doc: visuals)])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_video_that_is_missing_or_unreadable_stops_with_one_line(
    workers: int, load: Callable[..., Any], tmp_path: Path
) -> None:
    model, video = load(workers=workers, **{"data.missing": "absent"}), tmp_path / "none.mp4"
    with pytest.raises(UserError, match=rf"^{video}: no such video \(task {TASK}, document 2\)"):
        model.generate_until([make_request(model, 2, show=lambda doc: [str(video)])])
    video.write_bytes(os.urandom(999))
    with pytest.raises(UserError, match=rf"^{video}: [^\n]*$"):
        model.generate_until([make_request(model, 2, show=lambda doc: [str(video)])])


def test_other_requests_and_arguments_are_refused(load: Callable[..., Any]) -> None:
    model = load()
    for kind in ("loglikelihood", "generate_until_multi_round"):
        with pytest.raises(UserError, match=f"task {TASK}: is of type {kind}"):
            getattr(model, kind)([Instance(kind, ("text", "continuation"))])
    for size in ("auto", "0", "auto:4"):
        with pytest.raises(UserError, match=f"--batch_size {size}: expected a whole number"):
            load(batch_size=size)
    with pytest.raises(UserError, match="unknown key 'max_batch_size'"):
        load(max_batch_size=8)


def test_the_base_alone_needs_no_features(load: Callable[..., Any], finished: Path) -> None:
    model = load(base_only=True)
    assert not model.config.sides
    assert model.generate_until([make_request(model, i) for i in range(20)]) != read_texts(finished)
