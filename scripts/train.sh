#!/usr/bin/env bash
# `pave train` on every GPU of a node: one process a GPU under torchrun, without GPU a single one.
#   bash scripts/train.sh CONFIG --out OUT [key=value ...] [--resume]     # PROCESSES=2 for so many processes
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
PATH="$PWD/.venv/bin:$PATH"
PROCESSES=${PROCESSES:-$(python -c 'import torch; print(max(1, torch.cuda.device_count()))')}
exec torchrun --standalone --nproc-per-node "$PROCESSES" -m pave.cli.main.main train "$@"
