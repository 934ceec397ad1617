#!/usr/bin/env bash
# Scores a checkpoint on ScanQA: bash scripts/scanqa_eval.sh DATA CKPT [key=value ...]
source "$(dirname "$0")/lib/recipe.sh"
evaluate scanqa "$@"
