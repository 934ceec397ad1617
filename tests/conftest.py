"""Shared by all tests: where the data is, which tests run, one thread a worker."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="also run the slow tests")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--all"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow: runs with --all"))


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


class World(NamedTuple):
    """Where the tiny base and the tiny data are."""

    base: Path
    data: Path


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    from tiny import make_base, make_data

    folder = tmp_path_factory.mktemp("tiny")
    return World(make_base(folder / "base"), make_data(folder / "data"))
