"""The documents hold: commands parse, links and tests exist, the map is complete, the examples of new plugins run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.media_files import write_clip
from helpers.pages import PAGES, commands
from helpers.paths import ROOT
from safetensors.torch import save_file
from torch import rand
from transformers import Qwen2Config, Qwen2ForCausalLM

import pave.models.bases
import pave.sides
import pave.tasks
from pave import config
from pave.cli import main
from pave.sideworld import files, scene
from pave.training.tiny_models.llava_onevision import make_tokenizer

SCRIPTS = sorted(ROOT.glob("scripts/**/*.s*"))


@pytest.mark.parametrize("page", [*PAGES, *SCRIPTS], ids=lambda p: p.name)
def test_every_command_parses(page: Path) -> None:
    text = page.read_text()
    blocks = (
        re.findall(r"```(?!python)\w*\n(.*?)```", text, re.S) if page.suffix == ".md" else [text.replace("$SEED", "0")]
    )
    for words in (w for block in blocks for w in commands(block)):
        arguments = main.parse_arguments(words)  # ends the test with SystemExit where a word is unknown
        assert callable(arguments.run)
        if "overrides" in arguments and (ROOT / str(getattr(arguments, "config", ""))).is_file():
            config.load(ROOT / arguments.config, arguments.overrides)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_and_named_tests_exist(page: Path) -> None:
    text = page.read_text()
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", re.sub(r"```.*?```", "", text, flags=re.S)):
        assert (page.parent / link).exists(), link
    for file, test in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?", text):
        assert (ROOT / file).is_file(), file
        assert f"def {test}" in (ROOT / file).read_text(), test


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks about clip.mp4, here one of the small world that the patch has not seen."""
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert code
    heard = scene.draw_scene(scene.clip_seed("test", 0, 0))
    files.write_clip(heard, tmp_path / "clip.mp4")
    monkeypatch.chdir(tmp_path)
    answers: list[str] = []
    program = code[1].replace('"tests/fixtures', f'"{ROOT}/tests/fixtures')
    exec(compile(program, "README.md", "exec"), {"print": answers.append})
    assert answers[0] == heard.sound
    assert len(answers) == 2


def test_the_page_of_settings_is_that_of_the_code() -> None:
    command = [sys.executable, "-c", "import write_settings_page as w; assert w.PAGE.read_text() == w.page()"]
    subprocess.run(command, cwd=ROOT / "scripts", check=True)


def test_quirks_are_listed() -> None:
    quirks = (ROOT / "doc/reference/quirks.md").read_text()
    for file in (ROOT / "pave").rglob("*.py"):
        if "# Quirk:" in file.read_text():
            assert str(file.relative_to(ROOT)) in quirks, file


def test_the_examples_of_a_side_a_task_and_a_base_work_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for package, name, page in (
        (pave.sides, "spectrum", "side"),
        (pave.tasks, "barking", "task"),
        (pave.models.bases, "peek", "base"),
    ):
        found = re.search(r"```python\n(.*?)```", (ROOT / f"doc/extend/{page}.md").read_text(), re.S)
        assert found
        folder = tmp_path / name
        folder.mkdir()
        (folder / f"{name}.py").write_text(found[1])
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
        monkeypatch.delitem(sys.modules, f"{package.__name__}.{name}", raising=False)
    data = tmp_path / "data"
    (data / "videos").mkdir(parents=True)
    for split in ("train", "test"):
        records = []
        for i in range(2):
            clip = write_clip(data / f"videos/{split}{i}.mp4", 75, sound=rand(1, 48_000).numpy() - 0.5)
            record = {"id": f"{split}{i}", "video": f"videos/{clip.name}", "question": "Is a dog barking?"}
            records.append(json.dumps({**record, "answer": "yes" if i else "no"}))
        (data / f"{split}.jsonl").write_text("\n".join(records) + "\n")
    save_file({"bank": rand(4001, 8) * 1e-3}, tmp_path / "bank.safetensors")
    make_peek(tmp_path / "base")
    (tmp_path / "run.yaml").write_text(
        f"base: {{name: peek, path: {tmp_path}/base, newline: no_token, frames: 4, dtype: float32}}\n"
        "sides:\n"
        f"  spectrum: {{side_dim: 8, hidden_dim: 16, side_hidden_dim: 16,"
        f" features: features, encoder: {tmp_path}/bank.safetensors}}\n"
        f"lora: {{r: 4, alpha: 4}}\ndata: {{task: barking, root: {data}}}\n"
        "train: {max_steps: 2, per_device_train_batch_size: 2, gradient_accumulation_steps: 1, save_steps: 2,"
        " dataloader_num_workers: 0, report_to: none}\n"
    )
    ckpt, quick = f"{tmp_path}/out/final", ["--max-new-tokens", "3"]
    extract = f"extract spectrum --videos {data}/videos --out {data}/features --weights {tmp_path}/bank.safetensors"
    extract += " --workers 0"  # a process of its own would not know of a plugin in this folder
    for line in (
        f"show {tmp_path}/run.yaml",
        extract,
        f"train {tmp_path}/run.yaml --out {tmp_path}/out",
        f"eval --ckpt {ckpt} --out {tmp_path}/eval --workers 0",
        f"demo --ckpt {ckpt} --video {data}/videos/test0.mp4 --ask bark?",
    ):
        words = line.split()
        assert main.main([*words, *quick] if words[0] in ("eval", "demo") else words) == 0, line
    metrics = json.loads((tmp_path / "eval/metrics.json").read_text())["metrics"]
    assert metrics


def make_peek(folder: Path) -> None:
    """Random weights for the base of doc/extend/base.md."""
    from pave.models.bases.peek import Base

    tokenizer = make_tokenizer(["Is a dog barking? Answer with yes or no."])
    settings = Qwen2Config(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=len(tokenizer),
        max_position_embeddings=1024,
        bos_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    hf = Qwen2ForCausalLM(settings)
    hf.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    state = Base(hf, tokenizer).state_dict()
    save_file({name: x for name, x in state.items() if not name.startswith("hf.")}, folder / "vision.safetensors")
