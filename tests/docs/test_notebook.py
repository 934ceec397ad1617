"""The notebook runs, cell after cell, as it would in Jupyter; what it shows was saved from a run."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from helpers.paths import ROOT

FILE = ROOT / "doc/start/tour.ipynb"
PAGE = json.loads(FILE.read_text())
CODE = ["".join(cell["source"]) for cell in PAGE["cells"] if cell["cell_type"] == "code"]
PROOF = """
assert same and not update.any()
assert {*hear} == {*see} == {"fresh patch", "trained", "trained, side-channel of another clip"}
assert {*answers} == {"audio", "behind", "audio and behind", "the base alone"}
assert (found.views["audio"].attention.in_window.sum(1) == 3).any()
"""


def test_the_cells_run_in_order(tmp_path: Path) -> None:
    quick, count = re.subn(r"(?m)^CLIPS, UNSEEN, STEPS = .*$", "CLIPS, UNSEEN, STEPS = 6, 4, 2", "\n\n".join(CODE))
    assert count == 1
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path), "MPLBACKEND": "agg"}
    # Not a file: processes that read media would run it again.
    subprocess.run([sys.executable, "-c", f"{quick}\n{PROOF}"], check=True, cwd=tmp_path, env=environment)


def test_it_is_a_notebook_with_what_it_shows() -> None:
    assert (PAGE["nbformat"], PAGE["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in PAGE["cells"]]
    assert len({*ids}) == len(ids)
    assert FILE.stat().st_size < 300_000
    pictures = 0
    for number, cell in enumerate((c for c in PAGE["cells"] if c["cell_type"] == "code"), start=1):
        assert cell["execution_count"] == number, "saved after a run from the top"
        kinds = [output["output_type"] for output in cell["outputs"]]
        shows = isinstance(ast.parse("".join(cell["source"])).body[-1], ast.Expr)
        assert kinds == (["execute_result"] if shows else []), (number, kinds)
        pictures += sum("image/png" in output["data"] for output in cell["outputs"])
    assert pictures == 4
    shown = json.dumps([cell.get("outputs") for cell in PAGE["cells"]])
    assert not re.search(r"/(tmp|root|home|work)/", shown)


def test_its_links_exist() -> None:
    text = "\n".join("".join(cell["source"]) for cell in PAGE["cells"] if cell["cell_type"] == "markdown")
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert len(links) > 4
    for link in links:
        assert (FILE.parent / link).exists(), link
