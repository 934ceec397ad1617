#!/usr/bin/env bash
# Trains the published recipe of configs/enhanced_video.yaml, whose data has no test: other benchmarks score it.
#   bash scripts/recipes/enhanced_video.sh DATA OUT [key=value ...] [--resume]
source "$(dirname "$0")/common.sh"
train enhanced_video "$@"
echo "$OUT/final is trained, not scored: pave has no task for VideoMME, MVBench or MLVU yet; ask it with" \
  "'pave demo --ckpt $OUT/final --video FILE --features dense=FILE --ask QUESTION'"
