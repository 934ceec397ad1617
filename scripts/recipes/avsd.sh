#!/usr/bin/env bash
# Trains and scores the published recipe of configs/avsd.yaml, where its numbers are.
#   bash scripts/recipes/avsd.sh DATA OUT [key=value ...] [--resume]
source "$(dirname "$0")/common.sh"
train avsd "$@"
evaluate
