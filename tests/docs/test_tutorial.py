"""The tutorial works: its files and commands run in order, from an empty folder."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.paths import ROOT

from pave.cli import main
from pave.sideworld.files import read_scenes
from pave.sideworld.scene import SOUND_SECONDS

PAGE = (ROOT / "doc/start/tutorial.md").read_text()
FILES = dict(re.findall(r"Save as `([\w./]+)`:\n\n```\w+\n(.*?)```", PAGE, re.S))
SCRIPT = "".join(re.findall(r"```bash\n(.*?)```", PAGE, re.S))
SMALL = {
    "prepare": ["--train", "4", "--test", "3"],
    "extract": ["--workers", "0"],
    "train": ["train.max_steps=2", "train.per_device_train_batch_size=2", "train.report_to=none"],
    "eval": ["--workers", "0", "--max-new-tokens", "3"],
}
"""Arguments that make a command quick, by command; its others stay as on the page."""


def write_files(folder: Path) -> None:
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


def test_every_command_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))  # of processes that read files
    outputs = []
    for command, *words in map(shlex.split, SCRIPT.splitlines()):
        if command == "pave":
            assert main.main([*words, *SMALL.get(words[0], [])]) == 0, words
        elif command == "python":
            monkeypatch.setattr(sys, "argv", words)
            runpy.run_path(words[0], run_name="__main__")
        else:
            assert command in ("mkdir", "export"), command
        outputs.append((words[0], capsys.readouterr().out))
    assert next(output for name, output in outputs if name == "doctor").endswith("\n0 problems\n")
    assert json.loads((tmp_path / "eval/patched/metrics.json").read_text())["metrics"]["n"] == 15
    for file in ("run/final/patch.safetensors", "eval/report.png", "explain/index.html"):
        assert (tmp_path / file).is_file(), file
    check_loudest_step(tmp_path)


def check_loudest_step(folder: Path) -> None:
    """The sound of every clip plays in its loudest step."""
    from mylab import spectrum

    for record in read_scenes(folder / "data/scenes_train.jsonl"):
        file = folder / f"data/features/spectrum/{Path(record.video).stem}.safetensors"
        x, seconds = spectrum.SideChannel().load(file)
        assert x.shape[1:] == (1, 32)
        assert seconds is not None
        loudest_at = seconds[x[: len(seconds)].sum((1, 2)).argmax()]
        assert record.scene.heard_at < loudest_at < record.scene.heard_at + SOUND_SECONDS


@pytest.mark.slow
def test_the_scores_of_the_page_are_reached(tmp_path: Path) -> None:
    """At full size, in a shell: the scores are those of the page, and near chance without the side-channel."""
    write_files(tmp_path)
    preamble = (
        f'set -euo pipefail\npython() {{ "{sys.executable}" "$@"; }}\npave() {{ python -m pave.cli.main "$@"; }}\n'
    )
    script = preamble + SCRIPT.replace("PYTHONPATH=.", f'PYTHONPATH=".:{ROOT}"')
    subprocess.run(["bash", "-c", script], check=True, cwd=tmp_path)
    base, patched, shuffled = (
        json.loads((tmp_path / f"eval/{name}/metrics.json").read_text())["metrics"]
        for name in ("base", "patched", "shuffled")
    )
    # Chance on 200 questions of a kind: four standard deviations are .094 at 1/8 and .142 at 1/2.
    for control in (base, shuffled):
        assert abs(control["which_sound"] - 1 / 8) < 0.1, control
        assert abs(control["who_jumped"] - 1 / 2) < 0.15, control
    reported = re.search(r"\| audio questions \|.*\| \*\*(\.\d+)\*\* \|", PAGE)
    assert reported
    assert patched["audio"] > float(reported[1]) - 0.1, patched
    assert patched["visual"] >= 0.95, patched
