"""Where the data of the tests is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
"""Of the repository."""
GOLDEN = ROOT / "tests/golden"
"""Outputs of the official code."""
FIXTURES = ROOT / "tests/fixtures"
"""Small files in official layouts; media/ holds clips."""


def read_json(path: Path) -> Any:
    """What a JSON file holds."""
    return json.loads(path.read_text())
