#!/usr/bin/env bash
# Trains and scores the published recipe of configs/sqa3d.yaml, where its numbers are.
#   bash scripts/recipes/sqa3d.sh DATA OUT [key=value ...] [--resume]
source "$(dirname "$0")/common.sh"
train sqa3d "$@"
evaluate
