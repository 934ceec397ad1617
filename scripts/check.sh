#!/usr/bin/env bash
# Lint, formatting and types, as CI checks them; also the figures of CONTRIBUTING.md with --metrics.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
if [ "${1:-}" = --metrics ]; then .venv/bin/python scripts/code_metrics.py pave; fi
