"""What tests of `train` and others share."""

from __future__ import annotations

import json
from pathlib import Path


def losses(folder: Path) -> list[float]:
    return [entry["loss"] for entry in json.loads((folder / "log.json").read_text()) if "loss" in entry]
