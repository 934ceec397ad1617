#!/usr/bin/env bash
# Trains the published recipe of configs/enhanced_video.yaml, whose data has no test, and scores it on other benchmarks.
#   BENCHMARKS=FOLDER bash scripts/recipes/enhanced_video.sh DATA OUT [key=value ...] [--resume]
# FOLDER holds those of videomme/, mvbench/, mlvu/ that are to be answered (doc/datasets), each with languagebind_feat/.
source "$(dirname "$0")/common.sh"
train enhanced_video "$@"
for split in videomme/test mvbench/test mlvu/dev; do
  task=${split%/*}
  if [ -d "${BENCHMARKS:-}/$task" ]; then
    .venv/bin/pave eval --ckpt "$OUT/final" --out "$OUT/$task" --split "${split#*/}" --max-new-tokens 16 \
      base.dtype=float16 data.task="$task" data.root="$BENCHMARKS/$task"
    scored=1
  fi
done
[ -n "${scored:-}" ] || echo "$OUT/final is trained, not scored: give BENCHMARKS=FOLDER with videomme/, mvbench/ or mlvu/"
