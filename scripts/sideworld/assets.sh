#!/usr/bin/env bash
# The recipe of the assets in pave/sideworld/assets: the tiny base and the tiny audio tower, trained from nothing.
#   bash scripts/sideworld/assets.sh OUT [SEED]       # then: base.path=OUT/base sides.audio.encoder=OUT/audio.safetensors
set -euo pipefail
cd "$(dirname "$0")/../.."
bash scripts/setup.sh
PATH="$PWD/.venv/bin:$PATH"
OUT=${1:?where to write} SEED=${2:-0}
pave pretrain base --out "$OUT/base" --seed "$SEED"
pave pretrain audio --out "$OUT/audio.safetensors" --seed "$SEED"
