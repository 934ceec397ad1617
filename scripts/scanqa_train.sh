#!/usr/bin/env bash
# Trains the published recipe for ScanQA: bash scripts/scanqa_train.sh DATA OUT [key=value ...] [--resume]
source "$(dirname "$0")/lib/recipe.sh"
train scanqa "$@"
