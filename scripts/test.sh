#!/usr/bin/env bash
# The test suite, in .venv, which is made if there is none. Options go to pytest: --all adds the slow tests.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
exec .venv/bin/python -m pytest -n "$(.venv/bin/python -c 'import os; print(min(os.cpu_count() or 1, 8))')" "$@"
