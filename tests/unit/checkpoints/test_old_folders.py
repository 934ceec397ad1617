"""Folders that version 0.1 wrote: a checkpoint, and a run with its clips and features; old names are read there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.paths import FIXTURES, ROOT

from pave import config as configs
from pave.checkpoints import build, patch_folder
from pave.cli import main
from pave.config import RENAMED
from pave.evaluation.run_folder import claim_run_folder
from pave.types import UserError
from pave.utils.settings import rename_old_settings

FOLDER = ROOT / "tests/fixtures/sideworld_audio"
OLD_SETTINGS = {
    "base.choice=own": "'base.choice' is now 'base.frame_sampling'",
    "base.learn=[llm]": "'base.learn' is now 'base.trainable'",
    "base.init=a": "'base.init' is now 'base.init_from'",
    "sides.audio.dim=64": "'sides.audio.dim' is now 'sides.audio.side_dim'",
    "sides.audio.width=128": "'sides.audio.width' is now 'sides.audio.hidden_dim'",
    "sides.audio.side_width=128": "'sides.audio.side_width' is now 'sides.audio.side_hidden_dim'",
    "sides.audio.depth=2": "'sides.audio.depth' is now 'sides.audio.num_layers'",
    "sides.audio.values=key": "'sides.audio.values' is now 'sides.audio.value_projection'",
    "sides.audio.reach=1": "'sides.audio.reach' is now 'sides.audio.window_reach'",
    "sides.audio.train=true": "'sides.audio.train' is now 'sides.audio.trainable'",
    "lora.train=true": "'lora.train' is now 'lora.trainable'",
    "data.mask=answers": "'data.mask' is now 'data.labels'",
    "data.mix={}": "'data.mix' is now 'data.mixture'",
    "teacher=a": "'teacher' is now 'distill_from'",
    "data.labels=release": "'data.labels=release' is now 'official'",
}


def test_it_loads_and_its_settings_have_their_present_names(tmp_path: Path) -> None:
    stored = (FOLDER / "pave.yaml").read_text()
    for old in ("choice: even", "depth: 2", "width: 128", "values: key", "reach: 0.0", "mask: answers", "mix: {}"):
        assert f"  {old}\n" in stored

    model, config = build.load(FOLDER)
    side = config.sides["audio"]
    assert (side.side_dim, side.hidden_dim, side.side_hidden_dim, side.num_layers) == (64, 128, 128, 2)
    assert (side.value_projection, side.window_reach, side.trainable) == ("shared", 0.0, True)
    assert (config.base.frame_sampling, config.base.trainable, config.data.labels) == ("uniform", [], "answers")
    assert len(model.patches["audio"].layers) == 2

    patch_folder.save(model, config, tmp_path / "saved")
    assert "num_layers: 2\n" in (tmp_path / "saved/pave.yaml").read_text()
    again, config_again = build.load(tmp_path / "saved")
    assert config_again == config
    assert all(torch.equal(x, model.state_dict()[name]) for name, x in again.state_dict().items())


@pytest.mark.parametrize("override", OLD_SETTINGS)
def test_an_old_name_from_the_user_is_answered_with_the_present_one(override: str, tmp_path: Path) -> None:
    """On the command line and in a YAML file; a stored one would be read."""
    with pytest.raises(UserError, match=OLD_SETTINGS[override]):
        configs.from_overrides([override])

    file = tmp_path / "mine.yaml"
    key, _, value = override.partition("=")
    for name in reversed(key.split(".")):
        value = f"{{{name}: {value}}}"
    file.write_text(value)
    with pytest.raises(UserError, match=OLD_SETTINGS[override]):
        configs.load(file)


def test_a_run_of_version_0_1_goes_on(tmp_path: Path) -> None:
    """Clips, features, two answers, manifest and scores as version 0.1 wrote them; the other three questions follow."""
    shutil.copytree(FIXTURES / "version_0_1", tmp_path, dirs_exist_ok=True)
    run, data = tmp_path / "run", tmp_path / "data"
    first_answers = (run / "predictions.jsonl").read_text()

    # With rope its rotary positions were others, so its answers may not be mixed with ours.
    manifest = json.loads((run / "manifest.json").read_text())
    claim_run_folder(run / "manifest.json", {**rename_old_settings(manifest, RENAMED), "pave": "0.2.0"}, ("0.1.0",))
    with pytest.raises(UserError, match=r"answers of another run: pave was 0\.1\.0, is now 0\.2\.0"):
        claim_run_folder(run / "manifest.json", {**rename_old_settings(manifest, RENAMED), "pave": "0.2.0"})

    words = ["eval", "--ckpt", str(FOLDER), "--out", str(run), "--workers", "0", "--device", "cpu"]
    assert main.main([*words, f"data.root={data}"]) == 0
    assert (run / "predictions.jsonl").read_text().startswith(first_answers)
    assert json.loads((run / "metrics.json").read_text())["coverage"]["answered"] == 5
    assert json.loads((run / "manifest.json").read_text())["pave"] == "0.1.0"
    assert main.main(["doctor", str(data / "features/audio"), "--videos", str(data / "videos")]) == 0
