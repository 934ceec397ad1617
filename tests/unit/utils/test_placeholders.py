"""A tag of a video in a text makes no second video: one goes, whatever else would make one is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.paths import GOLDEN, read_json
from helpers.tiny_model import TinySetup, make_config
from test_tune import MAKE

from pave.checkpoints import build
from pave.config import BaseConfig, Config
from pave.data.collate import collate, encode_conversation
from pave.data.dataset import QuestionDataset
from pave.evaluation import evaluate
from pave.tasks import _annotations, sideworld
from pave.training import train
from pave.types import VIDEO_TOKEN_ID, UserError
from pave.utils import placeholders

CASES = {case["case"]: case for case in read_json(GOLDEN / "module/text/labels.json")["cases"]}
SECOND = ("both_tags", "tag_in_answer")
"""The original makes a second place for a video that nobody has, or leaves the tag as text."""


@pytest.mark.parametrize("name", CASES)
def test_a_tag_goes_as_the_official_loader_takes_it(name: str) -> None:
    said = [turn["value"] for turn in CASES[name]["conversations"]]
    if name in SECOND:
        with pytest.raises(UserError, match="expected at most one <video> or <image>"):
            placeholders.remove_tag(said, "7")
        return
    want = [turn["value"] for turn in CASES[name]["after_preprocess_video_multimodal"]]
    assert placeholders.remove_tag(said, "7") == [text.removeprefix("<video>\n") for text in want]


@pytest.fixture(scope="module", params=MAKE)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = str(MAKE[request.param](tmp_path_factory.mktemp("base")))
    return build.load_base(BaseConfig(request.param.split()[0], path, frames=8, newline="no_token", dtype="float32"))


def test_a_tag_changes_nothing(base: Any) -> None:
    want = encode_conversation(base, "what is heard?", (("a dog?", "barks"),), "a human")
    for tag in placeholders.TAGS:
        for question in (f"{tag}\na dog?", f"a dog?\n{tag}", f"{tag}a dog?"):
            assert encode_conversation(base, "what is heard?", ((question, "barks"),), "a human") == want
    assert want.ids.count(VIDEO_TOKEN_ID) == 1


@pytest.mark.parametrize(
    "text",
    [
        "<video>\n<video>\na dog?",
        "<image> or <video>?",
        "a <|video_pad|>?",
        "<|vision_start|>",
        "what is <IMG_CONTEXT>",
    ],
)
def test_a_second_video_is_refused(base: Any, text: str) -> None:
    for question, history, answer in (
        (text, (), None),
        ("<video>\nwhat?", ((text, "a dog"),), None),
        ("<video>\nwhat?", (), text),
    ):
        with pytest.raises(UserError, match=r"question '.+': its text holds <.+>, expected at most one") as caught:
            encode_conversation(base, question, history, answer)
        assert "\n" not in str(caught.value)


def test_what_a_tag_leaves_is_looked_at_too(tiny_setup: TinySetup) -> None:
    with pytest.raises(UserError, match="shows 2 videos"):
        encode_conversation(build.load_base(make_config(*tiny_setup).base), "a dog <vi<video>deo>")


def llava(turns: list[str]) -> dict[str, Any]:
    said = [{"from": who, "value": text} for who, text in zip(("human", "gpt") * len(turns), turns)]
    return {"id": "v_1", "video": "a.mp4", "conversations": said}


def test_records_of_the_llava_family() -> None:
    want = [("What is shown?", "A street."), ("Is it night?", "No.")]
    for asked in ("<image>\nWhat is shown?", "<video>\nWhat is shown?", "What is shown?\n<video>", "What is shown?"):
        assert _annotations.conversation(llava([asked, "A street.", "Is it night?", "No."])) == want
    with pytest.raises(ValueError, match=r"question '<video> What is shown.'.*holds <video> <video>"):
        _annotations.conversation(llava(["<video>\nWhat is shown?", "A street.", "<video>\nIs it night?", "No."]))


@pytest.fixture
def tagged(tiny_setup: TinySetup, tmp_path: Path) -> Config:
    """The tiny world as if its records had the tag in their questions, before or behind."""
    root = tmp_path / "tagged"
    shutil.copytree(tiny_setup.data, root)
    config = make_config(tiny_setup.base, root, max_steps=2)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, task="preference"))


def write(root: str, prompt: str) -> None:
    lines = [
        {"id": q.qid, "video": q.video, "prompt": prompt.format(q.text), "chosen": q.answers[0], "rejected": "no"}
        for q in sideworld.Task().load("train", Path(root))[:4]
    ]
    (Path(root) / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_training_on_records_with_a_tag(tagged: Config, tmp_path: Path) -> None:
    model = build.create(tagged)
    samples = []
    for prompt in ("{}", "<video>\n{}", "{}\n<image>"):
        write(tagged.data.root, prompt)
        samples.append(QuestionDataset(tagged, model.base, "train", with_answers=True)[0].ids)
    assert samples[0] == samples[1] == samples[2]
    write(tagged.data.root, "{} <video> <video>")
    with pytest.raises(UserError, match=r"record 1 question .* holds <video> <video>"):
        train.main(tagged, tmp_path / "out")


def test_a_task_that_leaves_tags_in_is_refused_before_anything_starts(
    tiny_setup: TinySetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(*tiny_setup, max_steps=2)
    asked = sideworld.Task().prompt
    monkeypatch.setattr(sideworld.Task, "prompt", lambda self, q: f"<video>\n{asked(q)} <video>")
    first = sideworld.Task().load("train", tiny_setup.data)[0].qid
    with pytest.raises(UserError, match=f"question '{first}': its text holds <video> <video>"):
        train.main(config, tmp_path / "out")
    model = build.create(config)
    with pytest.raises(UserError, match=r"holds <video> <video>"):
        evaluate.main(model, config, tmp_path / "eval", evaluate.Options(workers=0, limit=2))
    # Where files may be missing nothing is looked at before.
    with pytest.raises(UserError, match=r"holds <video> <video>.*--keep-going"):
        evaluate.main(model, config, tmp_path / "eval", evaluate.Options(workers=0, limit=2, allow_missing=True))


def test_one_tag_is_answered_as_none(tiny_setup: TinySetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(*tiny_setup)
    model = build.create(config).eval()
    want, asked = QuestionDataset(config, model.base, "test", with_answers=False)[0].ids, sideworld.Task().prompt
    monkeypatch.setattr(sideworld.Task, "prompt", lambda self, q: f"{asked(q)}\n<video>")
    assert QuestionDataset(config, model.base, "test", with_answers=False)[0].ids == want


@torch.no_grad()
def test_a_row_holds_its_own_video(tiny_setup: TinySetup) -> None:
    config = make_config(*tiny_setup)
    model = build.create(config).eval()
    data = QuestionDataset(config, model.base, "train", with_answers=True)
    one, two = data[0], data[4]
    fill = model.base.tokenizer.pad_token_id

    def splice(*samples: Any, apart: bool = False) -> torch.Tensor:
        batch = collate(samples, fill, separate_videos=apart)
        return model.splice(batch["ids"], batch["pixels"], batch["sides"], batch["frame_seconds"])

    for apart in (False, True):
        whole = splice(one, two, apart=apart)
        again = splice(one, two, one._replace(pixels=None), two._replace(pixels=None), apart=apart)
        assert torch.equal(again, torch.cat([whole, whole]))
        end = one.ids.index(VIDEO_TOKEN_ID) + 2
        cut = [sample._replace(ids=sample.ids[:end], labels=sample.labels[:end]) for sample in (one, two)]
        assert 0 < cut[0].ids.count(VIDEO_TOKEN_ID) < one.ids.count(VIDEO_TOKEN_ID)
        assert torch.equal(splice(*cut, apart=apart), whole[:, :end])
        text = one._replace(ids=[7, 7], labels=[7, 7], pixels=None)
        assert torch.equal(splice(text, one, two, apart=apart)[1:], whole)
        more = one._replace(ids=[*one.ids, VIDEO_TOKEN_ID], labels=[*one.labels, 0])
        with pytest.raises(UserError, match=r"a row has .* visual places"):
            splice(more, two, apart=apart)
        with pytest.raises(UserError, match="3 rows show a video, there are 2 videos"):
            splice(one, two, one._replace(pixels=None), apart=apart)
        with pytest.raises(UserError, match="1 rows show a video, there are 2 videos"):
            splice(one, text._replace(pixels=two.pixels), apart=apart)
