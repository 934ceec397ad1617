#!/usr/bin/env bash
# Trains the published recipe for Ego-Exo4D, demonstrator proficiency: bash scripts/egoexo4d_dp_data_train.sh DATA OUT [key=value ...] [--resume]
source "$(dirname "$0")/lib/recipe.sh"
train egoexo4d_dp_data "$@"
