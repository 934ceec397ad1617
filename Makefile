# Everything runs in .venv, which scripts/setup.sh makes.
BIN = .venv/bin

.PHONY: setup check test test-all demo

setup:
	bash scripts/setup.sh

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test:
	bash scripts/test.sh

test-all:
	bash scripts/test.sh --all

demo:
	bash scripts/quickstart.sh
