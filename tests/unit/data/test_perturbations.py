"""Probes do to a side-channel what they say."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from helpers.eval_runs import OPTIONS, change_options, results
from helpers.tiny_model import TinySetup

from pave.config import Config
from pave.data import perturbations
from pave.data.dataset import QuestionDataset
from pave.evaluation import evaluate
from pave.models.patched_model import PatchedModel
from pave.types import SideTokens, UserError

pytest_plugins = ["helpers.eval_runs"]


def test_a_dropped_side_is_no_side_and_needs_no_files(
    ready: tuple[PatchedModel, Config], finished: Path, tmp_path: Path, tiny_setup: TinySetup
) -> None:
    model, config = ready
    deaf = dataclasses.replace(config, data=dataclasses.replace(config.data, sides=[]))
    evaluate.main(model, deaf, tmp_path / "deaf", OPTIONS)
    root = tmp_path / "data"
    shutil.copytree(tiny_setup.data, root)
    shutil.rmtree(root / "features")
    moved = dataclasses.replace(config, data=dataclasses.replace(config.data, root=str(root)))
    evaluate.main(model, moved, tmp_path / "dropped", change_options(perturb=["audio=drop"]))
    assert results(tmp_path / "dropped")[0] == results(tmp_path / "deaf")[0] != results(finished)[0]


def test_every_perturbation_changes_what_is_heard_and_shuffling_is_as_ever(
    ready: tuple[PatchedModel, Config], finished: Path, tmp_path: Path
) -> None:
    evaluate.main(*ready, tmp_path / "all", change_options(shuffle_sides=True))
    evaluate.main(*ready, tmp_path / "one", change_options(perturb=["audio=shuffle"]))
    assert results(tmp_path / "all") == results(tmp_path / "one")
    answers = {results(tmp_path / "all")[0], results(finished)[0]}
    for i, text in enumerate(("freeze", "shift:2", "noise:-10dB")):
        evaluate.main(*ready, tmp_path / str(i), change_options(perturb=[f"audio={text}"]))
        answers.add(results(tmp_path / str(i))[0])
    assert len(answers) >= 4


def tokens(steps: int = 6, times: list[float] | None = None) -> SideTokens:
    x = torch.arange(steps, dtype=torch.float)[:, None, None].expand(steps, 2, 3).clone()
    return SideTokens(x, None if times is None else torch.tensor(times))


def moved(told: str, given: SideTokens) -> list[float]:
    (found,) = perturbations.parse([f"a={told}"], ["a"]).values()
    changed = perturbations.perturb(found, given, "seed")
    assert changed.x.shape == given.x.shape
    assert changed.seconds is given.seconds
    assert torch.equal(changed.x, changed.x[:, :1, :1].expand_as(changed.x))
    return changed.x[:, 0, 0].tolist()


def test_freeze_and_shift() -> None:
    assert moved("freeze", tokens()) == [0] * 6
    assert moved("shift:2.0", tokens()) == [0, 0, 0, 1, 2, 3]
    assert moved("shift:-1", tokens()) == [1, 2, 3, 4, 5, 5]
    assert moved("shift:0s", tokens()) == [0, 1, 2, 3, 4, 5]
    assert moved("shift:1s", tokens(times=[0.5, 1.0, 1.5, 2.0, 2.5, 3.0])) == [0, 0, 0, 1, 2, 3]
    assert moved("shift:100", tokens()) == [0] * 6
    # Two cameras at three times.
    assert moved("shift:1", tokens(times=[0, 0, 1, 1, 2, 2])) == [0, 1, 0, 1, 2, 3]
    with pytest.raises(UserError, match="6 steps at 4 times"):
        moved("shift:1", tokens(times=[0, 0, 1, 2, 2, 3]))


@pytest.mark.parametrize("ratio", [-6.0, 0.0, 10.0])
def test_noise_has_its_ratio_and_is_drawn_from_the_seed(ratio: float) -> None:
    given = SideTokens(torch.randn(7, 1, 50, generator=torch.Generator().manual_seed(1)) * 3)
    (found,) = perturbations.parse([f"a=noise:{ratio}dB"], ["a"]).values()
    noisy, again, elsewhere = (perturbations.perturb(found, given, seed).x for seed in ("a x", "a x", "a y"))
    noise = noisy - given.x
    measured = 10 * torch.log10(given.x.square().mean() / noise.square().mean())
    assert measured.item() == pytest.approx(ratio, abs=1e-4)
    assert torch.equal(noisy, again)
    assert not torch.allclose(noisy, elsewhere)
    silent = SideTokens(torch.zeros(3, 1, 4))
    assert torch.equal(perturbations.perturb(found, silent, "a").x, silent.x)


def test_noise_is_the_videos_own(ready: tuple[PatchedModel, Config], tiny_setup: TinySetup) -> None:
    model, config = ready
    perturbed = perturbations.parse(["audio=noise:0"], ["audio"])
    data = evaluate.load_questions(model, config, "train", perturbed, complete=True)
    x = [data[i].sides["audio"].x for i in (0, 1, 5)]
    plain = QuestionDataset(config, model.base, "train", with_answers=False)
    noise = [got - plain[i].sides["audio"].x for got, i in zip(x, (0, 1, 5))]
    assert torch.equal(noise[0], noise[1])
    assert not torch.allclose(noise[0][:5], noise[2][:5], atol=1e-2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("audio", "expected NAME=KIND"),
        ("audoi=drop", "fed no side-channel 'audoi'; did you mean 'audio'"),
        ("audio=dorp", "no perturbation 'dorp'; did you mean 'drop'"),
        ("audio=drop:3", "found 'drop:3', expected drop"),
        ("audio=shift", "found 'shift', expected shift:NUMBERs"),
        ("audio=noise:loud", "found 'noise:loud', expected noise:NUMBERdB"),
        ("audio=noise:infdB", "expected noise:NUMBERdB"),
    ],
)
def test_what_is_no_perturbation(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        perturbations.parse([text], ["audio", "dense"])
    with pytest.raises(UserError, match="has a perturbation already"):
        perturbations.parse(["audio=drop", "audio=freeze"], ["audio"])
    with pytest.raises(UserError, match="there are none"):
        perturbations.parse(["audio=drop"], [])
