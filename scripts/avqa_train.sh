#!/usr/bin/env bash
# Trains the published recipe for AVQA: bash scripts/avqa_train.sh DATA OUT [key=value ...] [--resume]
source "$(dirname "$0")/lib/recipe.sh"
train avqa "$@"
