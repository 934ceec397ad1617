#!/usr/bin/env bash
# Trains and scores the published recipe of configs/scanqa.yaml, where its numbers are.
#   bash scripts/recipes/scanqa.sh DATA OUT [key=value ...] [--resume]
source "$(dirname "$0")/common.sh"
train scanqa "$@"
evaluate
