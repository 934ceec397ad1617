"""`from pave import Pave`: folders and the hub in and out, the model card, patches that come and go."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from helpers.paths import GOLDEN, ROOT
from helpers.random_checkpoints import make_batch, save_trained, side_config, tensors
from helpers.tiny_model import TinySetup
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file

import pave as package
from pave import Pave, api
from pave.checkpoints import build, patch_folder
from pave.cli import main
from pave.config import Config, TaskConfig
from pave.evaluation import model_card
from pave.models import trainable
from pave.types import UserError
from pave.utils import hub_download as hub_files

E2E = GOLDEN / "e2e"


@pytest.fixture(scope="module")
def folders(tiny_setup: TinySetup, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("hub")
    kinds = {
        "audio": side_config(tiny_setup, {"audio": {}}),
        "music": side_config(tiny_setup, {"music": {"hidden_dim": 8}}, r=4),
    }
    return {name: save_trained(config, out / name, i) for i, (name, config) in enumerate(kinds.items())}


def test_importing_pave_is_instant_and_its_model_comes_when_asked_for() -> None:
    code = "import sys, pave; assert not {'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)\n"
    code += "from pave import types; assert types.__name__ == 'pave.types'"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert package.Pave is api.Pave
    with pytest.raises(AttributeError, match="no attribute 'Pavee'"):
        package.Pavee  # noqa: B018


def test_folder_in_and_out(folders: dict[str, Path], tmp_path: Path) -> None:
    pave = Pave.from_pretrained(folders["audio"], device="cpu")
    loaded, config = build.load(folders["audio"])
    assert pave.config == config
    assert not pave.model.training
    pave.save_pretrained(tmp_path / "mine")
    names = ["README.md", "adapter_config.json", "adapter_model.safetensors", "patch.safetensors", "pave.yaml"]
    assert sorted(file.name for file in (tmp_path / "mine").iterdir()) == names
    again = Pave.from_pretrained(str(tmp_path / "mine"), device="cpu")
    for other in (tensors(pave.model), tensors(again.model)):
        assert all(torch.equal(x, other[name]) for name, x in tensors(loaded).items())
    halved = Pave.from_pretrained(folders["audio"], ["sides.audio.weight=0.5"], device="cpu")
    assert halved.model.patch_weights == {"audio": 0.5}


def test_a_base_that_has_learnt_goes_in_and_out(tiny_setup: TinySetup, tmp_path: Path) -> None:
    config = side_config(tiny_setup, {"audio": {}})
    config = dataclasses.replace(config, base=dataclasses.replace(config.base, trainable=["projector"]))
    model = build.create(config)
    with torch.no_grad():
        for name in model.modified_base_tensors:
            model.base.get_parameter(name).normal_()
    patch_folder.save(model, config, tmp_path / "trained")
    Pave.from_pretrained(tmp_path / "trained", device="cpu").save_pretrained(tmp_path / "mine")
    written, stored = (load_file(tmp_path / folder / trainable.BASE_FILE) for folder in ("mine", "trained"))
    assert len(stored) > 1
    assert written.keys() == stored.keys()
    assert all(torch.equal(written[name], x) for name, x in stored.items())
    again, loaded = (Pave.from_pretrained(tmp_path / folder, device="cpu").model for folder in ("mine", "trained"))
    assert all(torch.equal(again.state_dict()[name], x) for name, x in loaded.state_dict().items())
    batch = make_batch(config, loaded, left=True)
    assert torch.equal(again.generate(**batch, max_new_tokens=4), loaded.generate(**batch, max_new_tokens=4))


def test_official_folder(tmp_path: Path) -> None:
    base = [f"base.path={E2E}/tiny-llava-onevision-qwen2-ov", "base.vision_heads=4", "base.dtype=float32"]
    pave = Pave.from_pretrained(E2E / "tiny_pave_v5_1_3_lora_trained", base, device="cpu")
    assert list(pave.model.patches) == ["audio"]
    pave.save_pretrained(tmp_path / "ours")
    again, _ = build.load(tmp_path / "ours")
    assert all(torch.equal(x, pave.model.state_dict()[name]) for name, x in again.state_dict().items())


def test_from_the_hub(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(name: str, allow_patterns: list[str]) -> str:
        assert name == "someone/audio"
        (tmp_path / "cache").mkdir()
        for file in filter_repo_objects([f.name for f in folders["audio"].iterdir()], allow_patterns=allow_patterns):
            shutil.copy(folders["audio"] / file, tmp_path / "cache")
        return str(tmp_path / "cache")

    monkeypatch.setattr(hub_files, "snapshot_download", download)
    model = Pave.from_pretrained("someone/audio", device="cpu").model
    assert all(torch.equal(x, tensors(model)[name]) for name, x in tensors(build.load(folders["audio"])[0]).items())


def test_no_way_to_the_hub(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    pave = Pave.from_pretrained(folders["audio"], device="cpu")
    for action, message in (
        (
            lambda: Pave.from_pretrained("nobody/nothing"),
            "nobody/nothing: not a folder, and not to be had from the hub",
        ),
        (lambda: Pave.from_pretrained("no body/nothing"), "not to be had from the hub"),
        (lambda: Pave.from_pretrained("./nothing/here"), "no such folder; expected a folder that `pave train` wrote"),
        (lambda: pave.hotswap("nobody/nothing"), "not to be had from the hub"),
        (lambda: pave.push_to_hub("me/mine"), "me/mine: the hub refuses: .*offline"),
        (lambda: pave.push_to_hub("me/mi ne"), "me/mi ne: the hub refuses"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            action()
        assert "\n" not in str(caught.value)


def test_push(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []
    uploaded: dict[str, bytes] = {}

    class Api:
        def create_repo(self, repo_id: str, **options: Any) -> None:
            calls.append((repo_id, options))

        def upload_folder(self, repo_id: str, folder_path: Path) -> str:
            uploaded.update({file.name: file.read_bytes() for file in folder_path.iterdir()})
            return f"hub:{repo_id}"

    monkeypatch.setattr(api, "HfApi", Api)
    pave = Pave.from_pretrained(folders["audio"], device="cpu")
    assert pave.push_to_hub("me/mine", private=True) == "hub:me/mine"
    assert calls == [("me/mine", {"private": True, "exist_ok": True})]
    for file in folders["audio"].iterdir():
        assert uploaded[file.name] == file.read_bytes(), file
    assert 'Pave.from_pretrained("me/mine"' in uploaded["README.md"].decode()


def test_patches_come_and_go(folders: dict[str, Path], tmp_path: Path) -> None:
    pave = Pave.from_pretrained(folders["audio"], device="cpu")
    pave.add("music", folders["music"])
    assert list(pave.config.sides) == ["audio", "music"]
    with pytest.raises(UserError, match="several LoRAs"):
        pave.save_pretrained(tmp_path / "two")
    pave.remove("audio")
    pave.model.set_patches({"music": 0.5})
    pave.save_pretrained(tmp_path / "music")
    assert "| music | audio | 12 | 8, 4, 2 |" in (tmp_path / "music/README.md").read_text()
    assert "rank 4, alpha 4" in (tmp_path / "music/README.md").read_text()
    again = Pave.from_pretrained(tmp_path / "music", device="cpu")
    assert again.model.patch_weights == {"music": 0.5}
    pave.hotswap(folders["audio"])
    assert pave.config == patch_folder.read_config(folders["audio"])


def test_model_card(folders: dict[str, Path], tmp_path: Path) -> None:
    pave = Pave.from_pretrained(folders["audio"], device="cpu")
    pave.save_pretrained(tmp_path / "mine")
    _, header, text = (tmp_path / "mine/README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(header) == {
        "library_name": "pave",
        "pipeline_tag": "video-text-to-text",
        "tags": ["pave", "video", "audio", "lora"],
    }
    count = sum(x.numel() for x in load_file(tmp_path / "mine/patch.safetensors").values())
    assert f"| audio | audio | 12 | 16, 4, 2 | {count:,} | 1 |" in text
    assert "`learning_rate=0.001`" in text
    assert "`patch_lr=0.005`" in text
    assert str(tmp_path) not in text
    assert "academic use only" in text
    assert "`sideworld`, split `train`" in text
    assert "None are given." in text
    assert "TODO: name the licence of your own." in text
    assert all(todo in text for todo in model_card.TODO.values())
    assert text.count("TODO") == len(model_card.TODO) + 1
    # On a base of the hub, the card says so.
    config = Config(sides=pave.config.sides)
    public = model_card.card(pave.model, config, "me/mine")
    metadata = yaml.safe_load(public.split("---\n")[1])
    assert metadata["base_model"] == "lmms-lab/llava-onevision-qwen2-0.5b-ov"
    assert metadata["base_model_relation"] == "adapter"
    assert 'Pave.from_pretrained("me/mine")' in public
    assert "pave demo --ckpt mine " in public
    huggingface_hub.ModelCard(public).data.to_dict()
    # Several tasks of one run, and a licence.
    mixed = dataclasses.replace(config.data, mixture={"avsd": TaskConfig(), "more": TaskConfig(task="avqa")})
    public = model_card.card(pave.model, dataclasses.replace(config, data=mixed), "me/mine", "cc-by-nc-sa-4.0")
    assert "Data: `avsd`, `avqa`, split `train`." in public
    assert huggingface_hub.ModelCard(public).data.license == "cc-by-nc-sa-4.0"
    assert public.count("TODO") == len(model_card.TODO)


def test_scores_on_the_card(folders: dict[str, Path], tiny_setup: TinySetup, tmp_path: Path) -> None:
    """With all that is needed to understand them, and never those of another model."""
    for name, options in (
        ("right", ["--limit", "2"]),
        ("without audio", ["--limit", "2", "--perturb", "audio=drop"]),
        ("base", ["--limit", "2", "--base-only"]),
        ("half", ["--limit", "2", "base.dtype=float16"]),
    ):
        words = ["eval", "--ckpt", str(folders["audio"]), "--out", str(tmp_path / name), "--workers", "0"]
        assert main.main([*words, "--max-new-tokens", "2", *options]) == 0
    pave = Pave.from_pretrained(folders["audio"], device="cpu")
    pave.save_pretrained(
        tmp_path / "mine", results=[tmp_path / name for name in ("right", "without audio", "base", "half")]
    )
    text = (tmp_path / "mine/README.md").read_text()
    questions = f"`sideworld`, split `test`: 2 of {5 * 3} questions answered, only the first 2 asked. Side-channels: "
    for used in ("audio; weights in float32", "audio (drop)", "none", "audio; weights in float16"):
        assert f"{questions}{used}" in text
    metrics = json.loads((tmp_path / "right/metrics.json").read_text())
    assert f"| which_sound | {metrics['metrics']['which_sound']:.4g} | 0.125 |" in text
    assert "| n | 2 |  |" in text
    other = Pave.from_pretrained(folders["music"], device="cpu")
    for results, message in (("right", "scores of other weights"), ("nowhere", "no such file; expected a folder that")):
        with pytest.raises(UserError, match=message):
            other.save_pretrained(tmp_path / "other", results=[tmp_path / results])
        assert not (tmp_path / "other").exists()


def test_the_commands_of_the_card_run(
    folders: dict[str, Path], tiny_setup: TinySetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    Pave.from_pretrained(folders["audio"], device="cpu").save_pretrained(tmp_path / "mine")
    clip = next((tiny_setup.data / "videos").glob("*.mp4"))
    shutil.copy(clip, tmp_path / "clip.mp4")
    shutil.copy(tiny_setup.data / f"features/audio/{clip.stem}.safetensors", tmp_path / "audio.safetensors")
    shutil.copytree(tiny_setup.base, tmp_path / "FOLDER")
    monkeypatch.chdir(tmp_path)
    text = (tmp_path / "mine/README.md").read_text()
    command, snippet, citation = re.findall(r"```\w*\n(.*?)```", text, re.S)
    assert citation.startswith("@inproceedings{liu2025pave,\n  title = {PAVE:")
    words = command.replace('"', "").split(" --ask What is heard? ")
    assert main.main([*words[0].split()[1:], "--ask", "What is heard?", *words[1].split(), "--device", "cpu"]) == 0
    answer = capsys.readouterr().out
    exec(snippet, {})
    assert capsys.readouterr().out == answer
    assert answer.strip()


def test_the_python_of_the_document_runs(
    tiny_setup: TinySetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(("audio", "dense", "both")):
        sides: dict[str, dict[str, Any]] = {"audio": {}, "dense": {}} if name == "both" else {name: {}}
        save_trained(side_config(tiny_setup, sides), Path("runs", name), i)
    text = (ROOT / "doc/guides/several_sides.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", text, re.S)
    exec(snippet, {})
    assert patch_folder.read_config(Path("runs/my_patch")) == patch_folder.read_config(Path("runs/both"))
