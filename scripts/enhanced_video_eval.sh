#!/usr/bin/env bash
# Scores a checkpoint with dense frames on Video-MME, MVBench and MLVU, whichever of them DATA holds:
#   bash scripts/enhanced_video_eval.sh DATA CKPT [key=value ...]     # DATA/videomme, DATA/mvbench, DATA/mlvu
source "$(dirname "$0")/lib/recipe.sh"
benchmarks enhanced_video "$@"
