#!/usr/bin/env bash
# Trains and scores the published recipe of configs/egoexo4d_dp_data.yaml, where its numbers are.
#   bash scripts/recipes/egoexo4d_dp.sh DATA OUT [key=value ...] [--resume]
source "$(dirname "$0")/common.sh"
train egoexo4d_dp "$@"
evaluate
