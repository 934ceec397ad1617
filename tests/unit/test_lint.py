"""ruff and mypy find nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest
from helpers.paths import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["ruff check .", "ruff format --check .", "mypy"])
def test_clean(tool: str) -> None:
    done = subprocess.run([sys.executable, "-m", *tool.split()], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
