"""The notebook runs cell by cell, as in Jupyter, and its outputs were saved from a run."""

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
CHECKS = """
assert torch.equal(manual_tokens, fused_tokens)
assert not update.any()
assert {*audio_accuracy} == {*exo_accuracy} == {"new patch", "trained", "trained, side-channel of another clip"}
assert {*answers} == {"audio", "behind", "audio and behind", "base alone"}
assert (explanation.views["audio"].attention.in_window.sum(1) == 3).any()
"""


def test_the_cells_run_in_order(tmp_path: Path) -> None:
    sizes = "TRAIN_CLIPS, TEST_CLIPS, STEPS"
    script, count = re.subn(rf"(?m)^{sizes} = .*$", f"{sizes} = 6, 4, 2", "\n\n".join(CODE))
    assert count == 1
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path), "MPLBACKEND": "agg"}
    # With -c and not as a file: processes that decode media would import a file, and run it again.
    subprocess.run([sys.executable, "-c", f"{script}\n{CHECKS}"], check=True, cwd=tmp_path, env=environment)


def test_outputs_were_saved_from_one_run() -> None:
    assert (PAGE["nbformat"], PAGE["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in PAGE["cells"]]
    assert len({*ids}) == len(ids)
    assert FILE.stat().st_size < 300_000
    num_images = 0
    for number, cell in enumerate((c for c in PAGE["cells"] if c["cell_type"] == "code"), start=1):
        assert cell["execution_count"] == number, "saved after a run from the top"
        actual = [output["output_type"] for output in cell["outputs"]]
        has_result = isinstance(ast.parse("".join(cell["source"])).body[-1], ast.Expr)
        assert actual == (["execute_result"] if has_result else []), (number, actual)
        num_images += sum("image/png" in output["data"] for output in cell["outputs"])
    assert num_images == 4
    outputs = json.dumps([cell.get("outputs") for cell in PAGE["cells"]])
    assert not re.search(r"/(tmp|root|home|work)/", outputs)


def test_its_links_exist() -> None:
    text = "\n".join("".join(cell["source"]) for cell in PAGE["cells"] if cell["cell_type"] == "markdown")
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert len(links) > 4
    for link in links:
        assert (FILE.parent / link).exists(), link
