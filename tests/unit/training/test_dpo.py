"""Learning from pairs of answers: the loss by hand, the reference, and a run that comes to prefer the better ones."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from helpers.report_runs import records
from helpers.tiny_model import TinySetup, make_config
from helpers.training_runs import check_same_weights

from pave.checkpoints import build
from pave.config import Config
from pave.models.patched_model import PatchedModel
from pave.sides import audio
from pave.tasks import sideworld
from pave.training import dpo, recipe, train
from pave.types import IGNORE_INDEX, UserError

BETA = 0.3


@pytest.fixture
def pairs(tiny_setup: TinySetup, tmp_path: Path) -> Config:
    """Every sound question of the tiny world; the worse answer is another word."""
    lines = [
        {"id": q.qid, "video": q.video, "prompt": f"<video>\n{sideworld.Task().prompt(q)}", "chosen": q.answers[0]}
        for q in sideworld.Task().load("train", tiny_setup.data)
        if q.group == "which_sound"
    ]
    for line in lines:
        line["rejected"] = "buzz" if line["chosen"] != "buzz" else "chime"
    root = tmp_path / "pairs"
    root.mkdir()
    (root / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in ("videos", "features"):
        shutil.copytree(tiny_setup.data / name, root / name)
    config = make_config(*tiny_setup, max_steps=6, learning_rate=1e-2, save_steps=3)
    return dataclasses.replace(
        config, dpo_beta=BETA, data=dataclasses.replace(config.data, task="preference", root=str(root))
    )


def test_side_channels_are_read_whole(pairs: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference is computed before training, so no part of a side-channel may be drawn at random."""
    dataset = dpo.PreferenceDataset(pairs, build.create(pairs).base, "train", with_answers=True)
    monkeypatch.setattr(audio.SideChannel, "load_random", None)
    assert dataset[0].chosen.sides["audio"] is not None


def test_margins_are_those_of_the_formula() -> None:
    torch.manual_seed(0)
    rows = [[0, IGNORE_INDEX, 2, 3], [0, 1, IGNORE_INDEX, 4], [0, IGNORE_INDEX, IGNORE_INDEX, 1], [0, 2, 2, 2]]
    labels = torch.tensor(rows)
    all_logits = torch.randn(4, 4, 6)
    logits = all_logits[:, :-1][labels[:, 1:] != IGNORE_INDEX]
    reference = torch.tensor([-1.0, -2.0, -3.0, -4.0])
    token_logps = all_logits.log_softmax(-1)
    logps = [
        sum(token_logps[i, at - 1, label] for at, label in enumerate(row) if at and label != IGNORE_INDEX)
        for i, row in enumerate(rows)
    ]
    margins = dpo.margins(logits, labels, reference, BETA)
    for i in range(2):
        gain = (logps[i] - reference[i]) - (logps[2 + i] - reference[2 + i])
        assert margins[i].item() == pytest.approx(BETA * gain.item(), abs=1e-5)
    expected = sum(math.log1p(math.exp(-margin)) for margin in margins.tolist()) / 2
    assert dpo.dpo_loss(margins).item() == pytest.approx(expected, abs=1e-6)


@torch.no_grad()
def test_the_reference_is_the_model_before_training(pairs: Config, tmp_path: Path) -> None:
    model, arguments = build.create(pairs).train(), recipe.training_arguments(pairs, tmp_path)
    data = dpo.PreferenceDataset(pairs, model.base, "train", with_answers=True)
    dpo.compute_reference_logps(model, {"preference": data}, tmp_path, arguments)
    assert model.training
    assert len(data.reference_logps) == len(data) > 2
    untrained = build.create(pairs).eval()
    for pair in (data[0], data[1]):
        batch = dpo.collate([pair], model.base.tokenizer.pad_token_id)
        reference = batch.pop("reference")
        assert batch["ids"].shape[0] == 2
        logps = dpo.answer_logps(untrained(**batch)["logits"], batch["labels"])
        torch.testing.assert_close(logps, reference, atol=1e-5, rtol=1e-5)
    # A resumed run reads them: this model without patches would give others.
    again = dpo.PreferenceDataset(pairs, model.base, "train", with_answers=True)
    dpo.compute_reference_logps(PatchedModel(model.base, {}), {"preference": again}, tmp_path, arguments)
    assert again.reference_logps == data.reference_logps


def test_a_video_is_looked_at_once_for_both_answers(pairs: Config) -> None:
    """Loss, margins and gradients are those of looking twice, as it must be where the sight depends on the answer."""
    model = build.create(pairs).train()
    for x in model.patches.parameters():
        torch.nn.init.normal_(x, std=0.3)
    data = dpo.PreferenceDataset(pairs, model.base, "train", with_answers=True)
    once = [data[i]._replace(reference=torch.zeros(2)) for i in (0, 2)]
    assert once[0].chosen.pixels is not None
    guided = [(p.chosen._replace(prompt_ids=[1]), p.rejected._replace(prompt_ids=[2])) for p in once]
    twice = [dpo.PreferencePair(chosen, rejected, p.reference) for p, (chosen, rejected) in zip(once, guided)]
    results = []
    for some, videos in ((once, 2), (twice, 4)):
        batch = dpo.collate(some, model.base.tokenizer.pad_token_id)
        batch.pop("prompt_ids", None)
        assert len(batch["pixels"]) == len(batch["frame_seconds"]) == videos
        model.zero_grad()
        loss = dpo.PreferenceLoss(BETA)(model, batch)["loss"]
        loss.backward()
        results.append([loss, *(x.grad for x in model.patches.parameters() if x.grad is not None)])
    assert len(results[0]) > 5
    for expected, actual in zip(*results):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


def test_a_run_comes_to_prefer_the_better_answers_and_resumes(pairs: Config, tmp_path: Path) -> None:
    train.main(pairs, tmp_path / "whole")
    log = records(tmp_path / "whole")
    assert log[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert log[-1]["loss"] < log[0]["loss"]
    assert log[-1]["preference/margin"] > 0 == log[0]["preference/margin"]
    unfinished = shutil.ignore_patterns("checkpoint-6", "final")
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed", ignore=unfinished)
    train.main(pairs, tmp_path / "resumed", resume=True)
    check_same_weights(tmp_path / "whole", tmp_path / "resumed")


def test_questions_without_a_worse_answer_are_refused(tiny_setup: TinySetup) -> None:
    config = dataclasses.replace(make_config(*tiny_setup), dpo_beta=BETA)
    base = build.load_base(config.base)
    with pytest.raises(UserError, match="has no worse answer"):
        dpo.PreferenceDataset(config, base, "train", with_answers=True)
