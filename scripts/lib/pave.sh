#!/usr/bin/env bash
# `pave COMMAND` on every GPU of a node: one process a GPU under torchrun, a single one where there is none.
#   bash scripts/lib/pave.sh train CONFIG --out OUT [key=value ...]      # PROCESSES=2 for so many processes
#   bash scripts/lib/pave.sh eval --ckpt CKPT --out OUT
set -euo pipefail
cd "$(dirname "$0")/../.."
bash scripts/setup.sh
PATH="$PWD/.venv/bin:$PATH"
PROCESSES=${PROCESSES:-$(python -c 'import torch; print(max(1, torch.cuda.device_count()))')}
exec torchrun --standalone --nproc-per-node "$PROCESSES" -m pave "$@"
