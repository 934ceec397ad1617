"""What a run logs of itself: the numbers are right, change nothing, and end up in TensorBoard and on one page."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.random_checkpoints import save_trained
from helpers.report_runs import SPEED, Checker, records
from helpers.tiny_model import TinySetup, make_config
from helpers.training_runs import losses
from torch import Tensor
from transformers import set_seed

from pave.checkpoints import build
from pave.cli import main
from pave.config import Config, LoraConfig
from pave.data.collate import collate
from pave.data.dataset import QuestionDataset
from pave.training import mixture, recipe, report, step_metrics, train
from pave.types import VIDEO_TOKEN_ID, UserError
from pave.utils import html

MEASURED = {
    f"{part}/{what}" for part in ("lora", "patch/audio") for what in ("grad_norm", "update_norm", "learning_rate")
}
MEASURED |= {"loss", "grad_norm", "patch/audio/loudness"}


def going_on(tiny_setup: TinySetup, folder: Path, **settings: Any) -> Config:
    """A run that starts from a patch and LoRA that change answers, without dropout and warm-up."""
    steady = {"max_steps": 1, "lr_scheduler_type": "constant", "warmup_steps": 0, "max_grad_norm": 0.05, **settings}
    config = dataclasses.replace(make_config(*tiny_setup, **steady), lora=LoraConfig(r=2, alpha=4, dropout=0.0))
    first = str(save_trained(config, folder / "first", 3))
    sides = {"audio": dataclasses.replace(config.sides["audio"], init_from=first, weight=-0.5)}
    return dataclasses.replace(config, sides=sides, lora=dataclasses.replace(config.lora, init_from=first))


def size(tensors: list[Tensor]) -> float:
    return math.sqrt(sum(x.double().square().sum().item() for x in tensors))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw_torch"])
def test_the_numbers_of_a_step_are_those_computed_by_hand(
    tiny_setup: TinySetup, tmp_path: Path, optimizer: str
) -> None:
    config = going_on(tiny_setup, tmp_path, optim=optimizer)
    train.main(config, tmp_path / "run")
    (got,) = records(tmp_path / "run")
    set_seed(42)
    model = build.create(config)
    data = QuestionDataset(config, model.base, "train", with_answers=True)
    order = list(mixture.MixtureSampler([len(data)], [len(data)], 42, lambda: 0))
    batches = [collate([data[i] for i in order[k : k + 2]], 0) for k in (0, 2)]
    added, seen = [], []
    for batch in batches:
        (model(**batch)["loss"] / 2).backward()
        with torch.no_grad():
            query = model.base.encode(batch["pixels"]).query
            added.append(-0.5 * model.patch_update(model.patches["audio"], query, batch["sides"]["audio"], None))
            seen.append(model.splice(batch["ids"], batch["pixels"], batch["sides"])[batch["ids"] == VIDEO_TOKEN_ID])
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    parts = {
        "lora": ([p for n, p in named.items() if ".lora_" in n], 1e-3),
        "patch/audio": ([p for n, p in named.items() if n.startswith("patches.audio.")], 5e-3),
    }
    total = size([p.grad for p in named.values()])
    assert total > 0.1  # so that it is clipped
    assert got["grad_norm"] == pytest.approx(total, rel=1e-5)
    for part, (parameters, rate) in parts.items():
        assert got[f"{part}/learning_rate"] == rate
        assert got[f"{part}/grad_norm"] == pytest.approx(size([p.grad for p in parameters]), rel=1e-5)
        clipped = [p.grad * (0.05 / total) for p in parameters]
        steps = clipped if optimizer == "sgd" else [g / (g.abs() + 1e-8) for g in clipped]
        expected = rate * size(steps) / size([p.detach() for p in parameters])
        assert got[f"{part}/update_norm"] == pytest.approx(expected, rel=2e-4)
    means = [math.sqrt(torch.cat([x.flatten() for x in xs]).double().square().mean()) for xs in (added, seen)]
    assert got["patch/audio/loudness"] == pytest.approx(means[0] / means[1], rel=1e-5)
    tokens = sum(batch["mask"].sum().item() for batch in batches)
    assert got["samples_per_second"] * got["seconds"] == pytest.approx(4)
    assert got["tokens_per_second"] * got["seconds"] == pytest.approx(tokens)
    assert 0.05 < got["memory/process_gib"] < 100


def test_a_side_channel_that_is_not_there_is_not_heard(tiny_setup: TinySetup, tmp_path: Path) -> None:
    config = going_on(tiny_setup, tmp_path)
    model = build.create(config)
    data = {"sideworld": QuestionDataset(config, model.base, "train", with_answers=True)}
    trainer = train.PaveTrainer(config, model, recipe.training_arguments(config, tmp_path), data)
    batch = collate([data["sideworld"][0], data["sideworld"][5]], 0)
    x, steps = batch["sides"]["audio"]["x"], batch["sides"]["audio"]["steps"]
    deaf = {**batch, "sides": {"audio": {"x": torch.zeros_like(x), "steps": [0, 0], "seconds": None}}}
    x = x * torch.tensor([1.0, 0.0])[:, None, None, None]
    half = {**batch, "sides": {"audio": {"x": x, "steps": [steps[0], 0], "seconds": None}}}
    trainer.gauges.by_part = False

    def loudness(batch: dict[str, Any]) -> float | None:
        trainer.gauges.due = True
        with trainer.gauges.micro_step(batch), torch.no_grad():
            model(**batch)
        return trainer.gauges.take().get("patch/audio/loudness")

    with torch.no_grad():
        query = model.base.encode(batch["pixels"]).query
        added = -0.5 * model.patch_update(model.patches["audio"], query, half["sides"]["audio"], None)
        seen = model.splice(half["ids"], half["pixels"], half["sides"])[half["ids"] == VIDEO_TOKEN_ID]
    assert not added[1].any()
    expected = (added[0].square().mean() / seen.square().mean()).sqrt().item()
    assert loudness(half) == pytest.approx(expected, rel=1e-5)
    assert loudness(deaf) is None


def test_measuring_changes_nothing_and_happens_on_logged_steps_only(
    tiny_setup: TinySetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    measure = step_metrics.total_norm
    monkeypatch.setattr(step_metrics, "total_norm", lambda tensors: calls.append(len(tensors)) or measure(tensors))
    for every in (1, 3, 100):
        calls.clear()
        train.main(make_config(*tiny_setup, max_steps=6, logging_steps=every), tmp_path / str(every))
        assert len(calls) == 6 * (6 // every)
    often, rarely, never = (build.load(tmp_path / f / "final")[0].state_dict() for f in ("1", "3", "100"))
    for name, x in often.items():
        assert torch.equal(x, rarely[name])
        assert torch.equal(x, never[name])
    steps = records(tmp_path / "1")
    for k, record in enumerate(records(tmp_path / "3")):
        assert record["loss"] == pytest.approx(sum(step["loss"] for step in steps[3 * k : 3 * k + 3]) / 3, rel=1e-6)
        same = {name for name in record if name.endswith(("_norm", "_rate", "loudness"))}
        assert {name: record[name] for name in same} == {name: steps[3 * k + 2][name] for name in same}
    assert not records(tmp_path / "100")


def test_a_stopped_run_has_a_page_and_the_resumed_one_covers_the_whole(
    tiny_setup: TinySetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(*tiny_setup, max_steps=6)
    train.main(config, tmp_path / "whole")
    step, out, calls = train.PaveTrainer.training_step, tmp_path / "stopped", []

    def interrupted(self: train.PaveTrainer, *arguments: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(train.PaveTrainer, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train.main(config, out)
    monkeypatch.undo()
    assert ("steps", "3 of 6") in cells(out)
    assert len(losses(out)) == 3
    train.main(config, out, resume=True)
    (began,) = [row[1] for row in cells(out) if row[0] == "began"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d [\d:]{8}, resumed \d{4}-\d\d-\d\d [\d:]{8}", began)
    assert ("steps", "6 of 6") in cells(out)
    for one, other in zip(records(out), records(tmp_path / "whole"), strict=True):
        assert set(one) == set(other) == {*MEASURED, *SPEED, "learning_rate", "epoch", "step"}
        assert {n: x for n, x in one.items() if n not in SPEED} == {n: x for n, x in other.items() if n not in SPEED}
    # The same page again, from its files alone.
    text = (out / "report.html").read_text()
    (out / "report.html").unlink()
    assert main.main(["report", str(out)]) == 0
    assert capsys.readouterr().out.endswith(f"\n{out}/report.html\n")
    assert (out / "report.html").read_text() == text


def test_tensorboard_has_every_number(tiny_setup: TinySetup, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train.main(make_config(*tiny_setup, max_steps=2, report_to="tensorboard"), tmp_path)
    (events,) = tmp_path.rglob("events.out.tfevents.*")
    found = EventAccumulator(str(events))
    found.Reload()
    assert set(found.Tags()["scalars"]) >= {f"train/{name}" for name in MEASURED | SPEED}
    written = [event.value for event in found.Scalars("train/patch/audio/grad_norm")]
    assert written == pytest.approx([record["patch/audio/grad_norm"] for record in records(tmp_path)])


def cells(out: Path) -> list[tuple[str, ...]]:
    return [tuple(row) for row in Checker((out / "report.html").read_text()).rows]


def made_up(steps: int) -> list[dict[str, Any]]:
    parts = ("lora", "patch/audio", "patch/depth")
    return [
        {
            "loss": 3 / step,
            "grad_norm": math.nan if step == 2 else 10 / step,
            "learning_rate": 1e-5,
            **{
                f"{part}/{what}": 1e-4 / step
                for part in parts
                for what in ("grad_norm", "learning_rate", "update_norm")
            },
            **{f"{part}/loudness": 0.01 * step for part in parts[1:]},
            "preference/margin": -step,
            **dict.fromkeys(("samples_per_second", "tokens_per_second", "memory/process_gib", "memory/gpu_gib"), 7.0),
            "seconds": 60.0,
            "epoch": step / 10,
            "step": step,
        }
        for step in range(1, steps + 1)
    ]


@pytest.mark.parametrize("steps", [1, 2, 100])
def test_the_page_is_whole_and_needs_nothing_from_outside(tmp_path: Path, steps: int) -> None:
    settings = {"max_grad_norm": 0.1, "output": "<b>"}
    config = dataclasses.replace(Config(), sides={})
    report.write_run_facts(tmp_path, {**report.run_facts(config, settings, "a table", "a machine"), "steps": 200}, resumed=False)
    report.write_report(tmp_path, made_up(steps))
    text = (tmp_path / "report.html").read_text()
    page_ = Checker(text)
    assert not re.search(r"https?:|//|url\(|@import|<script", text.replace("<!doctype html>", ""))
    assert {a["href"] for _, a in page_.tags if "href" in a} == {"data:,"}
    labels = [a["aria-label"] for tag, a in page_.tags if tag == "svg"]
    assert labels == [chart.title for chart in report.CHARTS]
    curves = [a for tag, a in page_.tags if tag == "polyline"]
    # Loss, 3 rates, 4 gradients, 3 updates, 2 loudnesses, margin, 2 speeds, 2 memories; of 11, a running mean too.
    assert len(curves) == 18 + (11 if steps == 100 else 0)
    for a in curves:
        for x, y in (point.split(",") for point in (a["points"] or "").split()):
            assert html.LEFT <= float(x) <= html.WIDTH - html.RIGHT + 0.1
            assert html.TOP - 0.1 <= float(y) <= html.HEIGHT - html.BOTTOM + 0.1
    rows = {row[0]: row[1:] for row in map(tuple, page_.rows)}
    assert rows["steps"] == (f"{steps} of 200",)
    assert rows["output"] == ("<b>",)
    assert rows["grad_norm"][-1] == ("0" if steps == 1 else "1")
    assert rows["lora/update_norm"][:2] == ("0.0001", f"{1e-4 / steps:.4g}")


def test_a_log_from_before_there_was_more(tmp_path: Path) -> None:
    old = [{"loss": 2.0, "grad_norm": 1.0, "learning_rate": 1e-3, "epoch": 0.5, "step": 10}]
    (tmp_path / "log.json").write_text(json.dumps(old))
    report.render_report(tmp_path)
    labels = [a["aria-label"] for tag, a in Checker((tmp_path / "report.html").read_text()).tags if tag == "svg"]
    assert labels == ["Loss", "Learning rate", "Gradient norm"]


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no log\.json in it; expected the folder of a `pave train` that has saved"):
        report.render_report(tmp_path)
    (tmp_path / "log.json").write_text("[{")
    with pytest.raises(UserError, match=r"log\.json: not valid JSON .* expected what `pave train` wrote"):
        report.render_report(tmp_path)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0), (3.2, 3.2), (-1, 7), (0, 119), (2e-7, 9e-6), (0, 1234567)])
def test_ticks_are_few_and_round_and_reach_over_the_ends(low: float, high: float) -> None:
    marks = html.ticks(low, high)
    assert marks[0] <= low
    assert marks[-1] >= high
    assert 2 <= len(marks) <= 7
    if low > 0:
        logs = html.decades(low, high)
        assert logs[0] <= low
        assert logs[-1] >= high
        assert 2 <= len(logs) <= 8


@pytest.mark.parametrize(("low", "high"), [(1e-9, 1e9), (0.3, 2.5), (1, 1), (0.05, 0.06), (9, 11), (1e-5, 1)])
def test_a_log_axis_reaches_over_its_ends(low: float, high: float) -> None:
    marks = html.decades(low, high)
    assert marks[0] <= low
    assert marks[-1] >= high
    assert 2 <= len(marks) <= 9
