"""A folder is data: what it names and pave does not have is code, which runs only where the user asks for it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.random_checkpoints import save_trained, side_config
from helpers.tiny_model import TinySetup

from pave import Pave, api, config
from pave.checkpoints import build, convert, hot_swap
from pave.checkpoints import load as load_checkpoint
from pave.cli import main
from pave.data import checks
from pave.inference import session
from pave.media.feature_files import Meta
from pave.media.feature_files import write as write_tokens
from pave.types import SideTokens, UserError
from pave.utils import registry

NAMED = {
    "base.name": ("name: llava_onevision", "name: payload.base", "payload.base"),
    "sides.audio.side": ("side: audio", "side: payload.side", "payload.side"),
    "data.task": ("task: sideworld", "task: payload.task", "payload.task"),
    "data.mixture.more.task": ("mixture: {}", "mixture: {more: {task: payload.task}}", "payload.task"),
}
"""What a folder's pave.yaml says instead, and the module that this names, by setting."""
PLUGINS = {"base": "pave.models.bases.llava_onevision", "side": "pave.sides.audio", "task": "pave.tasks.sideworld"}


@pytest.fixture(scope="module")
def plain(tiny_setup: TinySetup, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained folder with nothing of its own."""
    return save_trained(side_config(tiny_setup, {"audio": {}}), tmp_path_factory.mktemp("plain") / "final", 0)


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Modules that can be imported; the file is there once one was."""
    package, marker = tmp_path / "modules/payload", tmp_path / "ran"
    package.mkdir(parents=True)
    for name, own in PLUGINS.items():
        (package / f"{name}.py").write_text(
            f"from pathlib import Path\n\nfrom {own} import *\n\nPath({str(marker)!r}).touch()\n"
        )
    monkeypatch.syspath_prepend(package.parent)
    for name in PLUGINS:
        monkeypatch.delitem(sys.modules, f"payload.{name}", raising=False)
    monkeypatch.delitem(sys.modules, "payload", raising=False)
    return marker


def change(plain: Path, folder: Path, setting: str) -> Path:
    """A copy of a folder that names a module in a setting."""
    shutil.copytree(plain, folder)
    text, (before, after, _) = (plain / "pave.yaml").read_text(), NAMED[setting]
    assert text.count(before) == 1
    (folder / "pave.yaml").write_text(text.replace(before, after))
    return folder


@pytest.mark.parametrize("setting", NAMED)
def test_no_loader_runs_what_only_the_folder_names(
    setting: str, plain: Path, tiny_setup: TinySetup, tmp_path: Path, ran: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = change(plain, tmp_path / "final", setting)
    model, own = build.load(plain)
    loaded = api.Pave(model, own)
    message = rf"final: names the plugin '{NAMED[setting][2]}' \('{setting}'\), .* --trust-plugins .*trust_plugins=True"
    loaders: list[Callable[[], object]] = [
        lambda: Pave.from_pretrained(folder, device="cpu"),
        lambda: build.load(folder),
        lambda: load_checkpoint.load_model(folder, None, ["base.frames=4"], base_only=True, device="cpu"),
        lambda: load_checkpoint.load_model(folder / "pave.yaml", None, base_only=True, device="cpu"),
        lambda: session.load_with_patches(plain, None, [], "cpu", [("more", str(folder))]),
        lambda: hot_swap.add(model, own, "more", folder),
        lambda: hot_swap.hotswap(model, own, folder),
        lambda: loaded.add("more", folder),
        lambda: loaded.hotswap(folder),
        lambda: convert.to_official(folder, tmp_path / "official"),
    ]
    for load in loaders:
        with pytest.raises(UserError, match=message.replace("final", r"final(/pave\.yaml)?")) as caught:
            load()
        assert "\n" not in str(caught.value)
    video = str(tiny_setup.data / "videos/test_00000.mp4")
    for words in (
        ["demo", "--ckpt", str(folder), "--video", video, "--ask", "What?"],
        ["demo", "--ckpt", str(plain), "--patch", f"more={folder}", "--video", video, "--ask", "What?"],
        ["eval", "--ckpt", str(folder), "--out", str(tmp_path / "eval")],
        ["explain", "--ckpt", str(folder), "--video", video, "--ask", "What?", "--out", str(tmp_path / "explain")],
        ["convert", str(folder), str(tmp_path / "official"), "--to", "official"],
    ):
        capsys.readouterr()
        assert main.main(words) == 1
        assert "names the plugin" in capsys.readouterr().err, words
    assert not ran.exists()


@pytest.mark.parametrize("setting", NAMED)
def test_the_user_lets_it_run_or_names_it(
    setting: str, plain: Path, tiny_setup: TinySetup, tmp_path: Path, ran: Path
) -> None:
    folder, module = change(plain, tmp_path / "final", setting), NAMED[setting][2]
    assert (
        config.named_plugins(Pave.from_pretrained(folder, device="cpu", trust_plugins=True).config)[setting][1]
        == module
    )
    build.load(folder, [f"{setting}={module}"])
    others = [f"{other}={NAMED[other][2]}" for other in NAMED if NAMED[other][2] != module]
    with pytest.raises(UserError, match="names the plugin"):
        build.load(folder, others)
    own = {"base.name": "llava_onevision", "sides.audio.side": "audio"}.get(setting, "sideworld")
    build.load(folder, [f"{setting}={own}"])
    words = ["eval", "--ckpt", str(folder), "--out", str(tmp_path / "eval"), "--workers", "0", "--max-new-tokens", "2"]
    assert main.main([*words, "--trust-plugins"]) == 0
    assert ran.exists() == (setting != "data.mixture.more.task")  # that one is for training alone


@pytest.mark.parametrize("setting", ["base.name", "sides.audio.side", "data.task"])
def test_what_a_config_for_training_names_is_the_users_own(
    setting: str, plain: Path, tmp_path: Path, ran: Path
) -> None:
    """Also where it begins from a folder that names the same module."""
    folder = change(plain, tmp_path / "final", setting)
    begin = [f"sides.audio.init_from={folder}", f"lora.init_from={folder}"]
    words = ["train", str(folder / "pave.yaml"), "--out", str(tmp_path / "out"), "train.max_steps=1", *begin]
    assert main.main(words) == 0
    assert ran.exists()
    with pytest.raises(UserError, match="names the plugin"):
        build.load(tmp_path / "out/final")


def test_the_card_of_a_model_with_a_module_of_the_users_says_so(plain: Path, tmp_path: Path, ran: Path) -> None:
    folder = change(plain, tmp_path / "final", "sides.audio.side")
    Pave.from_pretrained(folder, device="cpu", trust_plugins=True).save_pretrained(tmp_path / "mine")
    card = (tmp_path / "mine/README.md").read_text()
    assert "--trust-plugins\n" in card
    assert ", trust_plugins=True)" in card
    Pave.from_pretrained(plain, device="cpu").save_pretrained(tmp_path / "plain")
    assert "trust" not in (tmp_path / "plain/README.md").read_text()


def test_a_store_of_features_does_not_run_what_it_names(tmp_path: Path, ran: Path) -> None:
    from torch import zeros

    store = tmp_path / "store"
    store.mkdir()
    write_tokens(store / "a.safetensors", SideTokens(zeros(2, 1, 4) + 1), Meta("audio", "imagebind_audio", "a.mp4"))
    (store / "store.json").write_text(
        json.dumps(
            {
                "side": "payload.side",
                "extractor": "imagebind_audio",
                "options": "{}",
                "weights": "",
                "dtype": "float32",
                "pave_version": "0.1.0",
            }
        )
    )
    with pytest.raises(UserError, match=r"store\.json names the plugin 'payload\.side', .* name it with --side"):
        checks.check_store(store)
    assert not ran.exists()
    checks.check_store(store, "payload.side")
    assert ran.exists()


def test_what_ships() -> None:
    for kind in ("bases", "sides", "tasks"):
        for name in registry.names(kind):
            assert registry.is_shipped(kind, name)
            assert registry.is_shipped(kind, f"{registry.PACKAGES[kind]}.{name}")
    for name in ("payload.code", "pave.sides._frame_features", "pave.sides.audio.code", ".audio", "os.path"):
        assert not registry.is_shipped("sides", name), name
