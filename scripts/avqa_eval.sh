#!/usr/bin/env bash
# Scores a checkpoint on AVQA: bash scripts/avqa_eval.sh DATA CKPT [key=value ...]
source "$(dirname "$0")/lib/recipe.sh"
evaluate avqa "$@"
