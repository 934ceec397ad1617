#!/usr/bin/env bash
# Scores a checkpoint with dense frames and sound on AVSD:
#   bash scripts/multiple_side_channels_eval.sh DATA CKPT [key=value ...]
source "$(dirname "$0")/lib/recipe.sh"
evaluate multiple_side_channels "$@"
