"""Configs: shipped ones resolve and build, unknown keys and values name the nearest valid one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from helpers.paths import ROOT

from pave import config
from pave.checkpoints import build
from pave.models.trainable import describe_parts
from pave.training import recipe
from pave.types import UserError
from pave.utils import registry

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
AUDIO = ROOT / "configs/avqa.yaml"


@pytest.mark.parametrize("file", CONFIGS, ids=lambda f: f.name)
def test_shipped_config_builds_and_says_what_it_is(file: Path, tmp_path: Path) -> None:
    resolved = config.load(file)
    model = build.create(resolved, weights=False)
    table = describe_parts(model)
    for name in resolved.sides:
        assert f"patch {name}" in table
    assert "LoRA" in table
    arguments = recipe.training_arguments(resolved, tmp_path)
    assert arguments.max_steps > 0 or arguments.num_train_epochs in (1, 2)
    head = file.read_text().split("base:")[0]
    assert f"configs/{file.name}" in head or f"bash scripts/{file.stem}_train.sh" in head
    assert "Hardware:" in head
    (tmp_path / "again.yaml").write_text(config.dump(resolved))
    assert config.load(tmp_path / "again.yaml") == resolved


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sides.audio.num_layer=3", "unknown key 'sides.audio.num_layer'; did you mean 'num_layers'"),
        ("bas.frames=3", "did you mean 'base'"),
        ("base.newline=gird", "'base.newline' cannot be 'gird'; did you mean 'grid'"),
        ("base.frames=many", "'base.frames'.*many"),
        ("sides.audio.rope=maybe", "'sides.audio.rope'.*maybe"),
        ("lora=3", "lora"),
        ("frames", "expected key=value"),
        ("base.frames=${oc.env:NOT_SET}", "'base.frames': .*NOT_SET"),
        ("base.path=${nowhere", "not a value: no viable"),
        ("base.path=[1", "'base.path=.*': not a value"),
        # An old setting, or value, is answered with the present one.
        ("teacher=a", "'teacher' is now 'distill_from'"),
        ("sides.audio.depth=3", "'sides.audio.depth' is now 'sides.audio.num_layers'"),
        ("base.frame_sampling=own", "'base.frame_sampling=own' is now 'native'"),
        # Values that would train nothing, or fail later.
        ("base.frames=0", "base.frames=0: expected a number, 1 at least"),
        ("base.fps=-1", "base.fps=-1.0: expected a number, 0 at least"),
        ("base.fps=nan", "base.fps=nan: expected a number"),
        ("base.vision_heads=0", "base.vision_heads=0"),
        ("sides.audio.side_dim=0", "sides.audio.side_dim=0: expected a number, 1 at least"),
        ("sides.audio.heads=0", "sides.audio.heads=0: expected a number, 1 at least"),
        ("sides.audio.num_layers=0", "sides.audio.num_layers=0"),
        ("sides.audio.heads=3", "sides.audio.heads=3: expected a divisor of sides.audio.hidden_dim=512"),
        ("sides.audio={rope: true, heads: 8}", "sides.audio.rope=true: heads of 64 channels, expected heads of 128"),
        ("sides.audio.queries=[16]", r"sides.audio.queries=\[16\]: expected \[frames, tokens\]"),
        ("sides.audio.queries=[16,0]", r"sides.audio.queries=\[16, 0\]"),
        ("sides.audio.conv_blocks=[1]", "sides.audio: 1 conv_blocks, 0 conv_strides and 0 conv_scales"),
        ("sides.audio.neighborhood=centered", "window_reach=0 .*neighborhood=centered: expected a number of steps"),
        ("sides.audio.neighborhood=seconds", "window_reach=0 .*neighborhood=seconds: expected seconds, more than 0"),
        ("sides.audio={neighborhood: centered, window_reach: 0.5}", "window_reach=0.5"),
        ("sides.audio={neighborhood: seconds, window_reach: .nan}", "window_reach=nan"),
        ("sides.audio.window_reach=-1", "window_reach=-1"),
        ("lora.r=-1", "lora.r=-1: expected a number, 0 at least"),
        ("lora.dropout=1", "lora.dropout=1.0: expected a share below 1"),
        ("data.max_length=0", "data.max_length=0"),
        ("data.temperature=0", "data.temperature=0.0: expected a number above 0"),
        ("data.mixture={a: {weight: .nan}}", "data.mixture.a.weight=nan: expected a number above 0"),
        ("patch_lr=-1", "patch_lr=-1.0"),
        ("dpo_beta=-1", "dpo_beta=-1.0"),
    ],
)
def test_bad_override(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        config.load(AUDIO, [override])
    assert "\n" not in str(error.value)


def test_values_are_checked_however_a_config_is_made(tmp_path: Path) -> None:
    message = "sides.a.heads=3: expected a divisor"
    with pytest.raises(UserError, match=message):
        config.Config(sides={"a": config.PatchConfig(heads=3)})
    with pytest.raises(UserError, match=message):
        dataclasses.replace(config.Config(), sides={"a": config.PatchConfig(heads=3)})
    (tmp_path / "pave.yaml").write_text("sides: {a: {heads: 3}}")
    with pytest.raises(UserError, match=message):
        config.load(tmp_path / "pave.yaml", is_stored=True)


OLD = """
base: {choice: own, learn: [projector], frames: 4}
sides:
  audio: {dim: 8, width: 16, side_width: 4, depth: 1, values: own, neighborhood: seconds, reach: 1.5, train: false}
lora: {r: 2, init: start, train: false}
data: {mask: release, mix: {a: {weight: 2.0}}}
teacher: tower
"""


def test_a_folder_of_version_0_1_is_read_under_present_names(tmp_path: Path) -> None:
    (tmp_path / "pave.yaml").write_text(OLD)
    actual = config.load(tmp_path / "pave.yaml", is_stored=True)
    sides = {
        "audio": config.PatchConfig(
            side_dim=8,
            hidden_dim=16,
            side_hidden_dim=4,
            num_layers=1,
            value_projection="separate",
            neighborhood="seconds",
            window_reach=1.5,
            trainable=False,
        )
    }
    assert actual == config.Config(
        base=config.BaseConfig(frame_sampling="native", trainable=["projector"], frames=4),
        sides=sides,
        lora=config.LoraConfig(r=2, init_from="start", trainable=False),
        data=config.DataConfig(labels="official", mixture={"a": config.TaskConfig(weight=2.0)}),
        distill_from="tower",
    )
    with pytest.raises(UserError, match=r"'base\.choice' is now 'base\.frame_sampling'"):
        config.load(tmp_path / "pave.yaml")


def test_a_stored_config_is_text_and_cannot_read_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "hidden")
    texts = ["${oc.env:SECRET}", r"\${oc.env:SECRET}", r"a\\${oc.env:SECRET}b", "${not closed"]
    options = [f"key={text}" for text in texts]
    file = tmp_path / "pave.yaml"
    file.write_text(json.dumps({"sides": {"a": {"encoder_options": options}}, "train": {"run_name": texts[0]}}))
    stored = config.load(file, is_stored=True)
    assert stored.sides["a"].encoder_options == options
    assert stored.train == {"run_name": texts[0]}

    # Such options are parsed once more where features are made.
    for option, text in zip(options, texts):
        assert config.options(KeyOptions, [option]).key == text
    # In a config of the user's own, interpolations work.
    file.write_text("train: {run_name: '${oc.env:SECRET}'}")
    assert config.load(file).train == {"run_name": "hidden"}


@dataclasses.dataclass(frozen=True)
class KeyOptions:
    key: str = ""


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.learning_rat=1", "did you mean 'learning_rate'"),
        ("train.learning_rate=fast", "'fast' is not a number"),
        ("train.lr_scheduler_type=cosinus", "cosinus"),
    ],
)
def test_bad_training_argument(override: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as error:
        recipe.training_arguments(config.load(AUDIO, [override]), tmp_path)
    assert "\n" not in str(error.value)


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such config"):
        config.load(tmp_path / "none.yaml")
    for text, message in (("base: [1,", "not valid YAML"), ("[1]", "holds a list, expected settings by name")):
        (tmp_path / "broken.yaml").write_text(text)
        for is_stored in (False, True):
            with pytest.raises(UserError, match=rf"broken\.yaml: {message}"):
                config.load(tmp_path / "broken.yaml", is_stored=is_stored)


def test_small_floats_are_numbers() -> None:
    assert config.load(AUDIO, ["train.learning_rate=2e-5"]).train["learning_rate"] == 2e-5


def test_a_module_of_the_users_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nowhere.side", "pave.nowhere"):
        with pytest.raises(UserError, match="PYTHONPATH"):
            registry.load("sides", name)
    (tmp_path / "mine_package").mkdir()
    (tmp_path / "mine_package/broken.py").write_text("import not_installed_at_all")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_installed_at_all"):
        registry.load("sides", "mine_package.broken")
