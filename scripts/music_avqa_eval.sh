#!/usr/bin/env bash
# Scores a checkpoint on Music-AVQA: bash scripts/music_avqa_eval.sh DATA CKPT [key=value ...]
source "$(dirname "$0")/lib/recipe.sh"
evaluate music_avqa "$@"
