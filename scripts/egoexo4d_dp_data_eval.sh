#!/usr/bin/env bash
# Scores a checkpoint on Ego-Exo4D, demonstrator proficiency: bash scripts/egoexo4d_dp_data_eval.sh DATA CKPT [key=value ...]
source "$(dirname "$0")/lib/recipe.sh"
evaluate egoexo4d_dp_data "$@"
