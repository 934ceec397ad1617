#!/usr/bin/env bash
# Trains the published recipe for AVSD: bash scripts/avsd_train.sh DATA OUT [key=value ...] [--resume]
source "$(dirname "$0")/lib/recipe.sh"
train avsd "$@"
