"""A video tag in a text makes no second video: one tag is removed, anything else is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.base_runs import CASES as BASES
from helpers.paths import GOLDEN, read_json
from helpers.tiny_model import TinySetup, make_config

from pave.checkpoints import build
from pave.config import Config
from pave.data.collate import collate, encode_conversation
from pave.data.dataset import QuestionDataset
from pave.evaluation import evaluate
from pave.models.base import Base
from pave.tasks import _annotations, sideworld
from pave.training import train
from pave.types import VIDEO_TOKEN_ID, UserError
from pave.utils import video_tags

CASES = {case["case"]: case for case in read_json(GOLDEN / "module/text/labels.json")["cases"]}
TWO_TAGS = ("both_tags", "tag_in_answer")
"""The official loader makes room for a second video that does not exist, or leaves the tag as text."""


@pytest.mark.parametrize("name", CASES)
def test_a_tag_is_removed_as_by_the_official_loader(name: str) -> None:
    texts = [turn["value"] for turn in CASES[name]["conversations"]]
    if name in TWO_TAGS:
        with pytest.raises(UserError, match="expected at most one <video> or <image>"):
            video_tags.remove_video_tag(texts, "7")
        return
    expected = [turn["value"] for turn in CASES[name]["after_preprocess_video_multimodal"]]
    assert video_tags.remove_video_tag(texts, "7") == [text.removeprefix("<video>\n") for text in expected]


@pytest.fixture(scope="module", params=BASES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    case = BASES[request.param]
    return build.load_base(case.config(case.make(tmp_path_factory.mktemp("base"))).base)


def test_a_tag_changes_nothing(base: Base) -> None:
    expected = encode_conversation(base, "what is heard?", (("a dog?", "barks"),), "a human")
    for tag in video_tags.TAGS:
        for question in (f"{tag}\na dog?", f"a dog?\n{tag}", f"{tag}a dog?"):
            assert encode_conversation(base, "what is heard?", ((question, "barks"),), "a human") == expected
    assert expected.ids.count(VIDEO_TOKEN_ID) == 1


SECOND_VIDEOS = (
    "<video>\n<video>\na dog?",
    "<image> or <video>?",
    "a <|video_pad|>?",
    "<|vision_start|>",
    "<IMG_CONTEXT>",
)


@pytest.mark.parametrize("text", SECOND_VIDEOS)
def test_a_second_video_is_refused(base: Base, text: str) -> None:
    for question, history, answer in (
        (text, (), None),
        ("<video>\nwhat?", ((text, "a dog"),), None),
        ("<video>\nwhat?", (), text),
    ):
        with pytest.raises(UserError, match=r"question '.+': its text holds <.+>, expected at most one") as error:
            encode_conversation(base, question, history, answer)
        assert "\n" not in str(error.value)


def test_a_tag_made_by_removing_a_tag_is_refused(tiny_setup: TinySetup) -> None:
    with pytest.raises(UserError, match="shows 2 videos"):
        encode_conversation(build.load_base(make_config(*tiny_setup).base), "a dog <vi<video>deo>")


def llava(turns: list[str]) -> dict[str, Any]:
    conversations = [{"from": speaker, "value": text} for speaker, text in zip(("human", "gpt") * len(turns), turns)]
    return {"id": "v_1", "video": "a.mp4", "conversations": conversations}


def test_records_of_the_llava_family() -> None:
    expected = [("What is shown?", "A street."), ("Is it night?", "No.")]
    for question in ("<image>\nWhat is shown?", "<video>\nWhat is shown?", "What is shown?\n<video>", "What is shown?"):
        assert _annotations.conversation(llava([question, "A street.", "Is it night?", "No."])) == expected
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
    prompt = sideworld.Task().prompt
    monkeypatch.setattr(sideworld.Task, "prompt", lambda self, q: f"<video>\n{prompt(q)} <video>")
    first = sideworld.Task().load("train", tiny_setup.data)[0].qid
    with pytest.raises(UserError, match=f"question '{first}': its text holds <video> <video>"):
        train.main(config, tmp_path / "out")
    model = build.create(config)
    with pytest.raises(UserError, match=r"holds <video> <video>"):
        evaluate.main(model, config, tmp_path / "eval", evaluate.Options(workers=0, limit=2))
    # Where files may be missing nothing is checked before the start.
    with pytest.raises(UserError, match=r"holds <video> <video>.*--keep-going"):
        evaluate.main(model, config, tmp_path / "eval", evaluate.Options(workers=0, limit=2, allow_missing=True))


def test_a_question_with_one_tag_is_asked_as_without(
    tiny_setup: TinySetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(*tiny_setup)
    model = build.create(config).eval()
    expected, prompt = QuestionDataset(config, model.base, "test", with_answers=False)[0].ids, sideworld.Task().prompt
    monkeypatch.setattr(sideworld.Task, "prompt", lambda self, q: f"{prompt(q)}\n<video>")
    assert QuestionDataset(config, model.base, "test", with_answers=False)[0].ids == expected


@torch.no_grad()
def test_a_row_holds_its_own_video(tiny_setup: TinySetup) -> None:
    config = make_config(*tiny_setup)
    model = build.create(config).eval()
    data = QuestionDataset(config, model.base, "train", with_answers=True)
    first, second = data[0], data[4]
    pad_id = model.base.tokenizer.pad_token_id

    def splice(*samples: Any, separate_videos: bool) -> torch.Tensor:
        batch = collate(samples, pad_id, separate_videos=separate_videos)
        return model.splice(batch["ids"], batch["pixels"], batch["sides"], batch["frame_seconds"])

    for separate_videos in (False, True):
        run = partial(splice, separate_videos=separate_videos)
        expected = run(first, second)
        repeated = run(first, second, first._replace(pixels=None), second._replace(pixels=None))
        assert torch.equal(repeated, torch.cat([expected, expected]))

        end = first.ids.index(VIDEO_TOKEN_ID) + 2
        cut = [sample._replace(ids=sample.ids[:end], labels=sample.labels[:end]) for sample in (first, second)]
        assert 0 < cut[0].ids.count(VIDEO_TOKEN_ID) < first.ids.count(VIDEO_TOKEN_ID)
        assert torch.equal(run(*cut), expected[:, :end])

        text = first._replace(ids=[7, 7], labels=[7, 7], pixels=None)
        assert torch.equal(run(text, first, second)[1:], expected)
        longer = first._replace(ids=[*first.ids, VIDEO_TOKEN_ID], labels=[*first.labels, 0])
        for samples, message in (
            ((longer, second), r"a row has .* visual"),
            ((first, second, first._replace(pixels=None)), "3 rows show a video, there are 2 videos"),
            ((first, text._replace(pixels=second.pixels)), "1 rows show a video, there are 2 videos"),
        ):
            with pytest.raises(UserError, match=message):
                run(*samples)
