"""Several tasks in one run: shares, order, side-channels of each task alone, resume."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_model import SIDE_DIM, TinySetup, make_config, make_data
from helpers.training_runs import losses, train_interrupted

from pave import config as configs
from pave.checkpoints import build
from pave.config import Config, PatchConfig, TaskConfig
from pave.data.collate import collate
from pave.data.dataset import QuestionDataset
from pave.training import mixture, train
from pave.types import UserError


@pytest.fixture(scope="module")
def joint(tiny_setup: TinySetup, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The small world twice, as if two tasks: one feeds the patch `audio`, one the patch `echo`."""
    run = make_config(*tiny_setup, max_steps=4)
    audio = run.sides["audio"]
    echo = PatchConfig(side="audio", side_dim=SIDE_DIM, hidden_dim=16, side_hidden_dim=16, features=audio.features)
    far = TaskConfig(task="sideworld", root=str(make_data(tmp_path_factory.mktemp("far"), 2, 2)), sides=["echo"])
    entries = {"near": TaskConfig(task="sideworld", sides=["audio"]), "far": far}
    mixed = dataclasses.replace(run.data, mixture=entries, temperature=2.0)
    return dataclasses.replace(run, sides={"audio": audio, "echo": echo}, data=mixed)


def make_mixture(temperature: float = 1.0, **weights: float) -> Config:
    entries = {name: TaskConfig(weight=weight) for name, weight in weights.items()}
    return Config(data=dataclasses.replace(Config().data, mixture=entries, temperature=temperature))


@pytest.mark.parametrize(
    ("config", "sizes", "expected"),
    [
        (Config(), [7], [7]),
        (make_mixture(a=1, b=1), [30, 10], [30, 10]),
        (make_mixture(a=1, b=3), [30, 10], [20, 20]),
        (make_mixture(2.0, a=1, b=1), [900, 100], [750, 250]),
        (make_mixture(1e9, a=1, b=1, c=1), [100, 10, 1], [37, 37, 37]),
        (make_mixture(a=1, b=1, c=1), [1, 1, 1], [1, 1, 1]),
        (make_mixture(a=1, b=1.5, c=1), [3, 3, 3], [3, 4, 2]),
    ],
)
def test_shares(config: Config, sizes: list[int], expected: list[int]) -> None:
    counts = mixture.questions_per_epoch(config, sizes)
    assert sum(counts) == sum(sizes)
    assert counts == expected


def order(sizes: list[int], counts: list[int], epoch: int = 0, seed: int = 0, **grouping: Any) -> list[int]:
    return list(mixture.MixtureSampler(sizes, counts, seed, lambda: epoch, **grouping))


def test_an_epoch_holds_every_question_once() -> None:
    first, second = order([30, 10], [30, 10], 0), order([30, 10], [30, 10], 1)
    assert sorted(first) == sorted(second) == list(range(40))
    assert first != second
    assert first == order([30, 10], [30, 10], 0)
    assert first != order([30, 10], [30, 10], 0, seed=1)
    assert any(i >= 30 for i in first[:20]), "the tasks are shuffled together"


def test_none_comes_twice_before_all_came_once() -> None:
    times = Counter(order([30, 10], [12, 28]))
    assert [times[i] for i in range(30)].count(1) == 12
    assert max(times[i] for i in range(30)) == 1
    assert sorted(times[i] for i in range(30, 40)) == [2] * 2 + [3] * 8


def test_questions_of_like_length_lie_side_by_side() -> None:
    lengths = [i % 7 for i in range(800)]
    grouped = order([800], [800], lengths=lengths, group_size=10)
    assert sorted(grouped) == list(range(800))
    chunks = [[lengths[i] for i in grouped[k : k + 10]] for k in range(0, 800, 10)]
    assert sum(max(chunk) - min(chunk) for chunk in chunks) < 80, "on average less than one of six"


def test_each_task_feeds_its_own_patch(joint: Config) -> None:
    model = build.create(joint)
    for patch in model.patches.values():
        torch.nn.init.normal_(patch.out_norm.weight)
    datasets = {
        name: QuestionDataset(config, model.base, "train", True) for name, config in mixture.task_configs(joint).items()
    }
    assert {name: list(dataset[0].sides) for name, dataset in datasets.items()} == {"near": ["audio"], "far": ["echo"]}
    assert datasets["near"].root != datasets["far"].root
    near, far = datasets["near"][0], datasets["far"][3]
    batch_loss = model(**collate([near, far], 0))["loss"]
    sample_losses = [model(**collate([sample], 0))["loss"] for sample in (near, far)]
    assert batch_loss.item() == pytest.approx(sum(sample_losses).item() / 2, abs=1e-5)
    sample_losses[0].backward()
    assert all(p.grad is None for p in model.patches["echo"].parameters())
    assert model.patches["audio"].side_in.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"neighborhood": "seconds", "window_reach": 1.0},
        {"neighborhood": "global", "value_projection": "separate"},
        {"hidden_dim": 512, "rope": True},
        {"queries": [4, 1]},
        {"conv_blocks": [1, 1, 1], "conv_strides": [1, 2, 2], "conv_scales": [1, 1, 2]},
    ],
    ids=str,
)
def test_a_patch_on_no_valid_step_adds_exactly_nothing(joint: Config, changes: dict[str, Any]) -> None:
    sides = {"audio": joint.sides["audio"], "echo": dataclasses.replace(joint.sides["echo"], **changes)}
    model = build.create(dataclasses.replace(joint, sides=sides))
    for patch in model.patches.values():
        torch.nn.init.normal_(patch.out_norm.weight)
    near = QuestionDataset(mixture.task_configs(joint)["near"], model.base, "train", True)
    samples = [near[0], near[5]]
    for count in (1, 2):
        model.zero_grad()
        batch = collate(samples[:count], 0)
        padded = collate(samples[:count], 0, side_dims={"audio": SIDE_DIM, "echo": SIDE_DIM})
        assert list(padded["sides"]) == ["audio", "echo"]
        losses = [model(**inputs)["loss"] for inputs in (batch, padded)]
        assert torch.equal(*losses)
        losses[1].backward()
        gradients = {name: p.grad for name, p in model.patches["echo"].named_parameters() if p.requires_grad}
        assert all(torch.equal(grad, torch.zeros_like(grad)) for grad in gradients.values()), gradients
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
        assert model.patches["audio"].side_in.weight.grad.abs().max() > 0


def test_a_joint_run_trains_all_and_resumes(joint: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    train.main(joint, tmp_path / "whole")
    assert "near: 20 questions, 18 an epoch" in caplog.text
    assert "far: 10 questions, 12 an epoch" in caplog.text
    stopped = tmp_path / "stopped"
    train_interrupted(joint, stopped, micro_step=7)
    train.main(joint, stopped, resume=True)
    assert losses(stopped) == losses(tmp_path / "whole")
    # One task of the run at a time is evaluated with what it feeds.
    options = ["data.sides=[echo]", f"data.root={joint.data.mixture['far'].root}"]
    model, config = build.load(stopped / "final", options)
    assert {n for n, p in model.patches.items() if p.out_norm.weight.abs().max() > 0} == {"audio", "echo"}
    assert list(QuestionDataset(config, model.base, "test", with_answers=False)[0].sides) == ["echo"]


def test_bad_mixtures(joint: Config, tmp_path: Path) -> None:
    text = configs.dump(joint)
    (tmp_path / "run.yaml").write_text(text)
    assert configs.load(tmp_path / "run.yaml") == joint
    with pytest.raises(UserError, match=r"unknown key 'data\.mixture\.far\.wieght'; did you mean 'weight'"):
        configs.load(tmp_path / "run.yaml", ["data.mixture.far.wieght=2"])
    deaf = configs.load(tmp_path / "run.yaml", ["data.mixture.far.sides=[eco]"])
    with pytest.raises(UserError, match="no patch 'eco' in this config; did you mean 'echo'"):
        train.main(deaf, tmp_path)
    with pytest.raises(UserError, match=r"sequential: data\.mixture needs random or group_by_length"):
        train.main(dataclasses.replace(joint, train={**joint.train, "train_sampling_strategy": "sequential"}), tmp_path)
