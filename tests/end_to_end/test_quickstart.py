"""The quickstart as a user runs it: what the patch adds is heard, and nothing leaks."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from helpers.paths import ROOT


@pytest.mark.slow
def test_nothing_leaks_and_the_patch_learns_to_hear(tmp_path: Path) -> None:
    subprocess.run(["bash", ROOT / "scripts/quickstart.sh", tmp_path, "1"], check=True, cwd=ROOT)
    runs = {
        name: json.loads((tmp_path / f"eval/{name}/metrics.json").read_text())
        for name in ("base", "patched", "shuffled")
    }
    base, patched, shuffled = (runs[name]["metrics"] for name in ("base", "patched", "shuffled"))
    chance = runs["base"]["chance"]
    # Chance on 200 questions of a kind: four standard deviations are .094 at 1/8 and .142 at 1/2.
    for deaf in (base, shuffled):
        assert abs(deaf["which_sound"] - chance["which_sound"]) < 0.1
        assert abs(deaf["who_jumped"] - chance["who_jumped"]) < 0.15
    assert "| audio questions |" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "report.png").is_file()
    assert patched["audio"] >= 0.9, patched
    assert patched["visual"] >= 0.95, patched
