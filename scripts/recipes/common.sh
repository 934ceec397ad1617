# Sourced by the recipes beside it: what they share, from the data to the score.
#   bash scripts/recipes/NAME.sh DATA OUT [key=value ...] [--resume]     # PROCESSES=2 for two of the node's GPUs
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
DATA=${1:?folder of the data set} OUT=${2:?folder for checkpoints, answers and scores}
shift 2

# train CONFIG [key=value ...]: published recipe, ZeRO-2 over the GPUs; train.deepspeed=null goes without deepspeed.
train() {
  bash scripts/train.sh "configs/$1.yaml" --out "$OUT" \
    data.root="$DATA" train.deepspeed=configs/distributed/zero2.json "${@:2}"
}

# evaluate: answers as the release made them, in half precision, and their score.
evaluate() {
  .venv/bin/pave eval --ckpt "$OUT/final" --out "$OUT/eval" --max-new-tokens 1024 base.dtype=float16
}
