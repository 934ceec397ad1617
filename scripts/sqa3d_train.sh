#!/usr/bin/env bash
# Trains the published recipe for SQA3D: bash scripts/sqa3d_train.sh DATA OUT [key=value ...] [--resume]
source "$(dirname "$0")/lib/recipe.sh"
train sqa3d "$@"
