"""The small world's report, recipes and script for the further side-channels."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from helpers.paths import ROOT

from pave import config
from pave.evaluation import side_channel_report
from pave.sides.base import get_side
from pave.sideworld.channels import CHANNELS, with_channels
from pave.sideworld.scene import draw_scene
from pave.tasks import sideworld
from pave.types import Prediction

RECIPES = {"dense": ("dense",), "exo": ("exo",), "scene3d": ("scene3d",), "two": ("audio", "dense")}
GOES_ON = {"dense": ["dense"], "exo": [], "scene3d": ["scene3d"], "two": ["dense"]}
"""Patches that start from the run before; the audio patch of two starts anew, and then by the script's word."""


def test_a_row_for_each_channel_and_for_two_together(tmp_path: Path) -> None:
    questions = sideworld.scene_questions(with_channels(draw_scene(0), CHANNELS))
    needs = {kind.name: kind.needs for kind in sideworld.KINDS}
    for name, right in (
        ("base", ["visual"]),
        ("patched", ["visual", "dense", "audio+dense"]),
        ("shuffled", ["visual"]),
    ):
        pairs = [(q, Prediction(q.qid, q.answers[0] if needs[q.group] in right else "none")) for q in questions]
        folder = tmp_path / name
        folder.mkdir()
        result = {
            **{"task": "sideworld", "split": "test", "coverage": {}},
            "metrics": sideworld.Task().score(pairs),
            "chance": sideworld.Task().chance(questions),
        }
        (folder / "metrics.json").write_text(json.dumps(result))
    report = side_channel_report.main(tmp_path / "base", tmp_path / "patched", tmp_path / "shuffled", tmp_path)
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in report.splitlines() if line.startswith("| ")}
    assert rows["dense questions"] == "| dense questions | 0.167 | 0.000 | 1.000 | 0.000 | 1.000 |"
    assert rows["audio+dense questions"] == "| audio+dense questions | 0.167 | 0.000 | 1.000 | 0.000 | 1.000 |"
    assert rows["depth questions"] == "| depth questions | 0.500 | 0.000 | 0.000 | 0.000 | 1.000 |"
    assert rows["heard_flash"] == "| heard_flash | 0.167 | 0.000 | 1.000 | 0.000 |"
    assert "visual questions" not in rows
    assert {"audio questions", "exo questions"} < set(rows)
    assert (tmp_path / "report.png").is_file()


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_read_what_the_script_extracts(name: str) -> None:
    read = config.load(ROOT / f"configs/sideworld/{name}.yaml")
    script = (ROOT / "scripts/sideworld/channels.sh").read_text()
    assert tuple(read.sides) == RECIPES[name]
    for side, patch in read.sides.items():
        extract = re.search(rf"pave extract {side} (.*)", script)
        assert extract
        options = dict(word.split("=") for word in extract[1].split() if "=" in word)
        assert set(options) <= {field.name for field in fields(get_side(side).options_type)}
        assert patch.features == f"features/{side}"
        assert patch.side_dim == {"audio": 64}.get(side, 96)
        assert read.lora.alpha * patch.weight == read.lora.r, "LoRA at its usual strength"


@pytest.mark.parametrize("name", RECIPES)
def test_what_goes_on_from_an_earlier_run(name: str) -> None:
    path = ROOT / f"configs/sideworld/{name}.yaml"
    assert not any(patch.init_from for patch in config.load(path).sides.values())
    later = config.load(path, ["lora.init_from=runs/first/final"])
    assert [side for side, patch in later.sides.items() if patch.init_from == "runs/first/final"] == GOES_ON[name]


def test_recipes_differ_in_their_side_channel_and_number_of_steps_alone() -> None:
    recipes = [yaml.safe_load((ROOT / f"configs/sideworld/{name}.yaml").read_text()) for name in RECIPES]
    for recipe in recipes:
        del recipe["sides"], recipe["data"]["root"]
        # Exo alone is learnt in one run, which is longer.
        del recipe["train"]["max_steps"], recipe["train"]["save_steps"]
    assert all(recipe == recipes[0] for recipe in recipes)
