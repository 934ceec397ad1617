"""Shared by all tests: which of them run, and the tiny setup."""

from __future__ import annotations

import pytest
from helpers.tiny_model import TinySetup, make_base, make_data


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="also run the slow tests")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--all"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow: runs with --all"))


@pytest.fixture(scope="session")
def tiny_setup(tmp_path_factory: pytest.TempPathFactory) -> TinySetup:
    """A base with random weights and a handful of clips with made-up features."""
    folder = tmp_path_factory.mktemp("tiny")
    return TinySetup(make_base(folder / "base"), make_data(folder / "data"))
