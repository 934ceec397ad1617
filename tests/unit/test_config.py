"""Configs: shipped ones resolve and build, unknown keys and values name the nearest valid one."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.paths import ROOT

from pave import config
from pave.checkpoints import build
from pave.training import train
from pave.types import UserError
from pave.utils import registry

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda f: f.name)
def test_shipped_config_builds_and_says_what_it_is(file: Path, tmp_path: Path) -> None:
    resolved = config.load(file)
    model = build.create(resolved, weights=False)
    table = train.describe(model)
    for name in resolved.sides:
        assert f"patch {name}" in table
    assert "LoRA" in table
    arguments = train.training_arguments(resolved, tmp_path)
    assert arguments.max_steps > 0 or arguments.num_train_epochs in (1, 2)
    head = file.read_text().split("base:")[0]
    assert f"configs/{file.name}" in head or f"bash scripts/recipes/{file.stem}.sh" in head
    assert "Hardware:" in head
    (tmp_path / "again.yaml").write_text(config.dump(resolved))
    assert config.load(tmp_path / "again.yaml") == resolved


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sides.audio.detph=3", "unknown key 'sides.audio.detph'; did you mean 'depth'"),
        ("bas.frames=3", "did you mean 'base'"),
        ("base.newline=gird", "'base.newline' cannot be 'gird'; did you mean 'grid'"),
        ("base.frames=many", "'base.frames'.*many"),
        ("sides.audio.rope=maybe", "'sides.audio.rope'.*maybe"),
        ("lora=3", "lora"),
        ("frames", "expected key=value"),
    ],
)
def test_bad_override(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        config.load(CONFIGS[0], [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.learning_rat=1", "did you mean 'learning_rate'"),
        ("train.learning_rate=fast", "'fast' is not a number"),
        ("train.lr_scheduler_type=cosinus", "cosinus"),
    ],
)
def test_bad_training_argument(override: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        train.training_arguments(config.load(CONFIGS[0], [override]), tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such config"):
        config.load(tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("base: [1,")
    with pytest.raises(UserError, match="not valid YAML"):
        config.load(tmp_path / "broken.yaml")


def test_small_floats_are_numbers() -> None:
    assert config.load(CONFIGS[0], ["train.learning_rate=2e-5"]).train["learning_rate"] == 2e-5


def test_a_module_of_the_users_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nowhere.side", "pave.nowhere"):
        with pytest.raises(UserError, match="PYTHONPATH"):
            registry.load("sides", name)
    (tmp_path / "mine_package").mkdir()
    (tmp_path / "mine_package/broken.py").write_text("import not_installed_at_all")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_installed_at_all"):
        registry.load("sides", "mine_package.broken")
