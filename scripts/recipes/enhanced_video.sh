#!/usr/bin/env bash
# Trains the published recipe of configs/enhanced_video.yaml, whose data has no test: other benchmarks score it.
#   bash scripts/recipes/enhanced_video.sh DATA OUT [key=value ...]
source "$(dirname "$0")/common.sh"
train enhanced_video "$@"
