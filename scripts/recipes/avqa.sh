#!/usr/bin/env bash
# Trains and scores the published recipe of configs/avqa.yaml, where its numbers are.
#   bash scripts/recipes/avqa.sh DATA OUT [key=value ...] [--resume]
source "$(dirname "$0")/common.sh"
train avqa "$@"
evaluate
