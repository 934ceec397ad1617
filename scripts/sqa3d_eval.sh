#!/usr/bin/env bash
# Scores a checkpoint on SQA3D: bash scripts/sqa3d_eval.sh DATA CKPT [key=value ...]
source "$(dirname "$0")/lib/recipe.sh"
evaluate sqa3d "$@"
