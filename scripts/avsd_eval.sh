#!/usr/bin/env bash
# Scores a checkpoint on AVSD: bash scripts/avsd_eval.sh DATA CKPT [key=value ...]
source "$(dirname "$0")/lib/recipe.sh"
evaluate avsd "$@"
