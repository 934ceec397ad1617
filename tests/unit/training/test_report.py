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
from helpers.training_runs import check_same_weights, losses, train_interrupted
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

PART_METRICS = ("grad_norm", "update_norm", "learning_rate")
METRICS = {f"{part}/{metric}" for part in ("lora", "patch/audio") for metric in PART_METRICS}
METRICS |= {"loss", "grad_norm", "patch/audio/relative_magnitude"}


def start_trained(tiny_setup: TinySetup, folder: Path, **settings: Any) -> Config:
    """A run that starts from a patch and LoRA that change answers, without dropout and warm-up."""
    steady = {"max_steps": 1, "lr_scheduler_type": "constant", "warmup_steps": 0, "max_grad_norm": 0.05, **settings}
    config = dataclasses.replace(make_config(*tiny_setup, **steady), lora=LoraConfig(r=2, alpha=4, dropout=0.0))
    source = str(save_trained(config, folder / "source", 3))
    sides = {"audio": dataclasses.replace(config.sides["audio"], init_from=source, weight=-0.5)}
    return dataclasses.replace(config, sides=sides, lora=dataclasses.replace(config.lora, init_from=source))


@pytest.fixture(scope="module")
def logged_run(tiny_setup: TinySetup, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of four steps, all of them logged, to TensorBoard too."""
    out = tmp_path_factory.mktemp("logged_run")
    train.main(make_config(*tiny_setup, report_to="tensorboard"), out)
    return out


def size(tensors: list[Tensor]) -> float:
    return math.sqrt(sum(x.double().square().sum().item() for x in tensors))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw_torch"])
def test_the_numbers_of_a_step_are_those_computed_by_hand(
    tiny_setup: TinySetup, tmp_path: Path, optimizer: str
) -> None:
    config = start_trained(tiny_setup, tmp_path, optim=optimizer)
    train.main(config, tmp_path / "run")
    (record,) = records(tmp_path / "run")
    set_seed(42)
    model = build.create(config)
    data = QuestionDataset(config, model.base, "train", with_answers=True)
    order = list(mixture.MixtureSampler([len(data)], [len(data)], 42, lambda: 0))
    batches = [collate([data[i] for i in order[k : k + 2]], 0) for k in (0, 2)]
    updates, visual_tokens = [], []
    for batch in batches:
        (model(**batch)["loss"] / 2).backward()
        with torch.no_grad():
            query = model.base.encode(batch["pixels"]).query
            updates.append(-0.5 * model.patch_update(model.patches["audio"], query, batch["sides"]["audio"], None))
            visual_tokens.append(
                model.splice(batch["ids"], batch["pixels"], batch["sides"])[batch["ids"] == VIDEO_TOKEN_ID]
            )
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    parts = {
        "lora": ([p for n, p in named.items() if ".lora_" in n], 1e-3),
        "patch/audio": ([p for n, p in named.items() if n.startswith("patches.audio.")], 5e-3),
    }
    total = size([p.grad for p in named.values()])
    assert total > 0.1  # so that it is clipped
    assert record["grad_norm"] == pytest.approx(total, rel=1e-5)
    for part, (parameters, rate) in parts.items():
        assert record[f"{part}/learning_rate"] == rate
        assert record[f"{part}/grad_norm"] == pytest.approx(size([p.grad for p in parameters]), rel=1e-5)
        clipped = [p.grad * (0.05 / total) for p in parameters]
        steps = clipped if optimizer == "sgd" else [g / (g.abs() + 1e-8) for g in clipped]
        expected = rate * size(steps) / size([p.detach() for p in parameters])
        assert record[f"{part}/update_norm"] == pytest.approx(expected, rel=2e-4)
    means = [
        math.sqrt(torch.cat([x.flatten() for x in xs]).double().square().mean()) for xs in (updates, visual_tokens)
    ]
    assert record["patch/audio/relative_magnitude"] == pytest.approx(means[0] / means[1], rel=1e-5)
    tokens = sum(batch["mask"].sum().item() for batch in batches)
    assert record["samples_per_second"] * record["seconds"] == pytest.approx(4)
    assert record["tokens_per_second"] * record["seconds"] == pytest.approx(tokens)
    assert 0.05 < record["memory/process_gib"] < 100


def test_an_absent_side_channel_is_not_measured(tiny_setup: TinySetup, tmp_path: Path) -> None:
    config = start_trained(tiny_setup, tmp_path)
    model = build.create(config)
    data = {"sideworld": QuestionDataset(config, model.base, "train", with_answers=True)}
    trainer = train.PaveTrainer(config, model, recipe.training_arguments(config, tmp_path), data)
    batch = collate([data["sideworld"][0], data["sideworld"][5]], 0)
    x, steps = batch["sides"]["audio"]["x"], batch["sides"]["audio"]["steps"]
    absent = {**batch, "sides": {"audio": {"x": torch.zeros_like(x), "steps": [0, 0], "seconds": None}}}
    x = x * torch.tensor([1.0, 0.0])[:, None, None, None]
    half = {**batch, "sides": {"audio": {"x": x, "steps": [steps[0], 0], "seconds": None}}}
    trainer.step_metrics.by_part = False

    def relative_magnitude(batch: dict[str, Any]) -> float | None:
        trainer.step_metrics.is_logged_step = True
        with trainer.step_metrics.micro_step(batch), torch.no_grad():
            model(**batch)
        return trainer.step_metrics.pop().get("patch/audio/relative_magnitude")

    with torch.no_grad():
        query = model.base.encode(batch["pixels"]).query
        update = -0.5 * model.patch_update(model.patches["audio"], query, half["sides"]["audio"], None)
        visual_tokens = model.splice(half["ids"], half["pixels"], half["sides"])[half["ids"] == VIDEO_TOKEN_ID]
    assert not update[1].any()
    expected = (update[0].square().mean() / visual_tokens.square().mean()).sqrt().item()
    assert relative_magnitude(half) == pytest.approx(expected, rel=1e-5)
    assert relative_magnitude(absent) is None


def test_measuring_changes_nothing_and_happens_on_logged_steps_only(
    tiny_setup: TinySetup, logged_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    total_norm = step_metrics.total_norm
    monkeypatch.setattr(step_metrics, "total_norm", lambda tensors: calls.append(len(tensors)) or total_norm(tensors))
    for every in (2, 100):
        calls.clear()
        train.main(make_config(*tiny_setup, logging_steps=every), tmp_path / str(every))
        # Gradients, updates and weights of two parts.
        assert len(calls) == 6 * (4 // every)
        check_same_weights(logged_run, tmp_path / str(every))
    steps = records(logged_run)
    for k, record in enumerate(records(tmp_path / "2")):
        assert record["loss"] == pytest.approx(sum(step["loss"] for step in steps[2 * k : 2 * k + 2]) / 2, rel=1e-6)
        of_last_step = {name for name in record if name.endswith(("_norm", "_rate", "relative_magnitude"))}
        assert {name: record[name] for name in of_last_step} == {name: steps[2 * k + 1][name] for name in of_last_step}
    assert not records(tmp_path / "100")


def test_a_stopped_run_has_a_page_and_the_resumed_one_covers_the_whole(
    tiny_setup: TinySetup, logged_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, out = make_config(*tiny_setup), tmp_path / "stopped"
    train_interrupted(config, out, micro_step=8)
    assert ("steps", "3 of 4") in cells(out)
    assert len(losses(out)) == 3
    train.main(config, out, resume=True)
    (began,) = [row[1] for row in cells(out) if row[0] == "began"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d [\d:]{8}, resumed \d{4}-\d\d-\d\d [\d:]{8}", began)
    assert ("steps", "4 of 4") in cells(out)
    for actual, expected in zip(records(out), records(logged_run), strict=True):
        assert set(actual) == set(expected) == {*METRICS, *SPEED, "learning_rate", "epoch", "step"}
        assert all(actual[name] == expected[name] for name in set(actual) - SPEED)
    # The same page again, from its files alone.
    text = (out / "report.html").read_text()
    (out / "report.html").unlink()
    assert main.main(["report", str(out)]) == 0
    assert capsys.readouterr().out.endswith(f"\n{out}/report.html\n")
    assert (out / "report.html").read_text() == text


def test_tensorboard_has_every_number(logged_run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (file,) = logged_run.rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file))
    events.Reload()
    assert set(events.Tags()["scalars"]) >= {f"train/{name}" for name in METRICS | SPEED}
    values = [event.value for event in events.Scalars("train/patch/audio/grad_norm")]
    assert values == pytest.approx([record["patch/audio/grad_norm"] for record in records(logged_run)])


def cells(out: Path) -> list[tuple[str, ...]]:
    return [tuple(row) for row in Checker((out / "report.html").read_text()).rows]


def make_log(steps: int) -> list[dict[str, Any]]:
    parts = ("lora", "patch/audio", "patch/depth")
    return [
        {
            "loss": 3 / step,
            "grad_norm": math.nan if step == 2 else 10 / step,
            "learning_rate": 1e-5,
            **{f"{part}/{metric}": 1e-4 / step for part in parts for metric in PART_METRICS},
            **{f"{part}/relative_magnitude": 0.01 * step for part in parts[1:]},
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
    facts = report.run_facts(config, settings, "a table", "a machine")
    report.write_run_facts(tmp_path, {**facts, "steps": 200}, is_resumed=False)
    report.write_report(tmp_path, make_log(steps))
    text = (tmp_path / "report.html").read_text()
    page = Checker(text)
    assert not re.search(r"https?:|//|url\(|@import|<script", text.replace("<!doctype html>", ""))
    assert {a["href"] for _, a in page.tags if "href" in a} == {"data:,"}
    labels = [a["aria-label"] for tag, a in page.tags if tag == "svg"]
    assert labels == [chart.title for chart in report.CHARTS]
    curves = [a for tag, a in page.tags if tag == "polyline"]
    # Loss, 3 rates, 4 gradients, 3 updates, 2 magnitudes, margin, 2 speeds, 2 memories; of 11, a running mean too.
    assert len(curves) == 18 + (11 if steps == 100 else 0)
    for a in curves:
        for x, y in (point.split(",") for point in (a["points"] or "").split()):
            assert html.LEFT <= float(x) <= html.WIDTH - html.RIGHT + 0.1
            assert html.TOP - 0.1 <= float(y) <= html.HEIGHT - html.BOTTOM + 0.1
    rows = {row[0]: row[1:] for row in map(tuple, page.rows)}
    assert rows["steps"] == (f"{steps} of 200",)
    assert rows["output"] == ("<b>",)
    assert rows["grad_norm"][-1] == ("0" if steps == 1 else "1")
    assert rows["lora/update_norm"][:2] == ("0.0001", f"{1e-4 / steps:.4g}")


def test_a_log_of_an_older_version(tmp_path: Path) -> None:
    """One with few metrics, and one with their former names."""
    record = {"loss": 2.0, "grad_norm": 1.0, "learning_rate": 1e-3, "epoch": 0.5, "step": 10}
    (tmp_path / "log.json").write_text(json.dumps([record]))
    report.render_report(tmp_path)
    labels = [a["aria-label"] for tag, a in Checker((tmp_path / "report.html").read_text()).tags if tag == "svg"]
    assert labels == ["Loss", "Learning rate", "Gradient norm"]

    former = {"patch/right/loudness": 0.1, "patch/loudness/grad_norm": 0.2, "preference/right": 0.3}
    (tmp_path / "log.json").write_text(json.dumps([{**record, **former, "lesson/grad_norm": 0.4}]))
    report.render_report(tmp_path)
    assert {row[0] for row in cells(tmp_path)} >= {
        "patch/right/relative_magnitude",
        "patch/loudness/grad_norm",
        "preference/accuracy",
        "distillation_head/grad_norm",
    }


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (None, r"no log\.json in it; expected the folder of a `pave train` that has saved"),
        ("[{", r"log\.json: not valid JSON .* expected what `pave train` wrote"),
        ("{}", r"log\.json: is no list of records; expected what `pave train` wrote"),
    ],
)
def test_a_folder_that_is_no_run(tmp_path: Path, log: str | None, message: str) -> None:
    if log is not None:
        (tmp_path / "log.json").write_text(log)
    with pytest.raises(UserError, match=message):
        report.render_report(tmp_path)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0), (3.2, 3.2), (-1, 7), (0, 119), (2e-7, 9e-6), (0, 1234567)])
def test_ticks_are_few_and_round_and_reach_over_the_ends(low: float, high: float) -> None:
    marks = html.ticks(low, high)
    assert marks[0] <= low
    assert marks[-1] >= high
    assert 2 <= len(marks) <= 7
    if low > 0:
        logs = html.log_ticks(low, high)
        assert logs[0] <= low
        assert logs[-1] >= high
        assert 2 <= len(logs) <= 8


@pytest.mark.parametrize(("low", "high"), [(1e-9, 1e9), (0.3, 2.5), (1, 1), (0.05, 0.06), (9, 11), (1e-5, 1)])
def test_a_log_axis_reaches_over_its_ends(low: float, high: float) -> None:
    marks = html.log_ticks(low, high)
    assert marks[0] <= low
    assert marks[-1] >= high
    assert 2 <= len(marks) <= 9
